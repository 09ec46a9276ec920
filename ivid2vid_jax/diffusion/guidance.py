"""Classifier-free guidance by text and by video.

    e = e(0,0) + s_V (e(V,0) - e(0,0)) + s_T (e(V,T) - e(V,0))

(InstructPix2Pix, arXiv 2211.09800, equation 3, with the video in the image's place.)
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class GuidanceBranch(NamedTuple):
    """One evaluation of the net: with or without the instruction, with or without the source clip, and its weight."""

    text: bool
    video: bool
    weight: float


def guidance_branches(text_scale: float, video_scale: float) -> list[GuidanceBranch]:
    """The evaluations that the scales ask for, the fully conditioned one last; those of weight zero are dropped.

    Raises ValueError for a scale that is not finite.
    """
    for name, scale in (("text", text_scale), ("video", video_scale)):
        if not np.isfinite(scale):
            raise ValueError(f"{name} scale {scale} must be a finite number")
    all_three = [
        GuidanceBranch(False, False, 1.0 - video_scale),
        GuidanceBranch(False, True, video_scale - text_scale),
        GuidanceBranch(True, True, text_scale),
    ]
    return [branch for branch in all_three[:2] if branch.weight] + all_three[2:]


def combine_branches(predictions, weights, rescale):
    """Weighted sum of the branches' predictions, in float32.

    predictions: [K, T, h, w, C]; weights: [K]; rescale: scalar in [0, 1], how far the result's standard deviation over the
    clip is brought back to that of the fully conditioned branch, the last (Lin et al. 2023, arXiv 2305.08891, equation 15).
    Returns [T, h, w, C].
    """
    predictions = predictions.astype(jnp.float32)
    guided = jnp.einsum("k,kthwc->thwc", weights, predictions)
    factor = predictions[-1].std() / jnp.maximum(guided.std(), 1e-8)
    return guided * (rescale * factor + (1.0 - rescale))
