"""Classifier-free guidance by text and by video.

    e = e(0, 0) + s_V (e(V, 0) - e(0, 0)) + s_T (e(V, T) - e(V, 0))

e(V, T) is the network's prediction given the source video V and the instruction T, and 0 is a
dropped condition (InstructPix2Pix, Brooks et al. 2022, arXiv 2211.09800, equation 3, with the
video instead of the image). The code computes the same sum ordered by prediction:

    e = (1 - s_V) e(0, 0) + (s_V - s_T) e(V, 0) + s_T e(V, T)
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class GuidanceBranch(NamedTuple):
    """One evaluation of the network, and its weight in the sum.

    Attributes:
        text: whether it sees the instruction.
        video: whether it sees the source clip.
        weight: see the equation above.
    """

    text: bool
    video: bool
    weight: float


def guidance_branches(text_scale: float, video_scale: float) -> list[GuidanceBranch]:
    """The evaluations that guidance needs, the fully conditioned one last.

    Branches of weight zero are dropped: s_V = 1 drops e(0, 0), and s_T = s_V drops e(V, 0).

    Args:
        text_scale: s_T.
        video_scale: s_V.

    Raises:
        ValueError: for a scale that is not finite.
    """
    for name, scale in (("text", text_scale), ("video", video_scale)):
        if not np.isfinite(scale):
            raise ValueError(f"{name} scale {scale} must be a finite number")
    e_00 = GuidanceBranch(text=False, video=False, weight=1.0 - video_scale)
    e_V0 = GuidanceBranch(text=False, video=True, weight=video_scale - text_scale)
    e_VT = GuidanceBranch(text=True, video=True, weight=text_scale)
    return [branch for branch in (e_00, e_V0) if branch.weight] + [e_VT]


def combine_branches(predictions, weights, rescale):
    """The weighted sum of the branches' predictions, in float32.

    Args:
        predictions: [K, T, h, w, C] of K branches, the fully conditioned one last.
        weights: [K].
        rescale: scalar in [0, 1]. 1 restores the standard deviation over the clip of the fully
            conditioned prediction, 0 changes nothing (Lin et al. 2023, arXiv 2305.08891,
            section 3.4).

    Returns:
        [T, h, w, C].
    """
    predictions = predictions.astype(jnp.float32)
    guided = jnp.einsum("k,kthwc->thwc", weights, predictions)
    factor = predictions[-1].std() / jnp.maximum(guided.std(), 1e-8)
    return guided * (rescale * factor + (1.0 - rescale))
