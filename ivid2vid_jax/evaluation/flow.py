"""Optical flow between consecutive frames, by OpenCV, and the metrics that use it.

The flow is Farneback's (2003), computed on luma with the settings FARNEBACK: it needs no weights
and is the same on every machine. Other estimators (RAFT, FlowNet2, GMFlow, as other papers use)
give other numbers.
"""

import itertools
from typing import Any

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.temporal import grey, moving
from ivid2vid_jax.utils.versions import install_command

FARNEBACK: dict[str, Any] = dict(
    pyr_scale=0.5, levels=4, winsize=15, iterations=5, poly_n=7, poly_sigma=1.5, flags=0
)


def forward(clip: np.ndarray) -> np.ndarray:
    """Flow from each frame to the next: [T, H, W, 3] uint8 -> [T-1, H, W, 2], (dx, dy) in pixels.

    The pixel at x in frame t is at x + flow in frame t+1. Raises UserError for fewer than 2 frames.
    """
    luma, cv2 = grey(moving(clip)), opencv()
    return np.stack(
        [cv2.calcOpticalFlowFarneback(a, b, None, **FARNEBACK) for a, b in itertools.pairwise(luma)]
    )


def backward(clip: np.ndarray) -> np.ndarray:
    """As `forward`, from frame t+1 to frame t."""
    return forward(clip[::-1])[::-1]


def magnitude(flow: np.ndarray) -> float:
    """Mean length of the vectors, pixels per frame."""
    return float(np.linalg.norm(flow, axis=-1).mean())


def end_point_error(flow: np.ndarray, reference: np.ndarray) -> float:
    """Mean length of the vectors' differences, pixels per frame.

    V2VBench's motion alignment is the negative of this, with GMFlow.
    """
    return magnitude(flow - reference)


def warp(images: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Backward warping: the output at x is the image at x + flow, bilinear, edges repeated.

    Args:
        images: [N, H, W, C] float32.
        flow: [N, H, W, 2].
    """
    cv2 = opencv()
    pairs = zip(images, np.moveaxis(targets(flow), -1, 1), strict=True)
    return np.stack(
        [
            cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for image, (x, y) in pairs
        ]
    )


def targets(flow: np.ndarray) -> np.ndarray:
    """The positions x + flow, [N, H, W, 2]."""
    H, W = flow.shape[1:3]
    return (flow + np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1)).astype(np.float32)


def visible(forward_flow: np.ndarray, backward_flow: np.ndarray) -> np.ndarray:
    """Mask of the pixels of frame t that are visible in frame t+1, bool [N, H, W].

    A pixel is visible if forward and backward flow cancel, it is on no motion boundary, and its
    target is within the frame. With squared lengths, after Sundaram et al. (2010), Ruder et al.
    (arXiv 1604.08610, equations 5 and 6) and Lai et al. (2018), it is

    - occluded where |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5,
    - on a boundary where |grad u|^2 + |grad v|^2 > 0.01 |f|^2 + 0.002; the gradient is the
      difference to the next pixel, 0 at the last one.

    Lai et al. also count pixels whose flow leaves the frame (warping repeats the image's edge).
    """
    returned = warp(backward_flow, forward_flow)
    length, returned_length, error = (
        np.square(flow).sum(-1) for flow in (forward_flow, returned, forward_flow + returned)
    )
    gradient = sum(
        np.square(np.diff(forward_flow, axis=axis, append=np.take(forward_flow, [-1], axis))).sum(
            -1
        )
        for axis in (1, 2)
    )
    positions, (H, W) = targets(forward_flow), forward_flow.shape[1:3]
    inside = ((positions >= -0.5) & (positions <= np.array([W, H]) - 0.5)).all(-1)
    consistent = error <= 0.01 * (length + returned_length) + 0.5
    return inside & consistent & (gradient <= 0.01 * length + 0.002)


def warping_error(clip: np.ndarray, source_flow: np.ndarray, mask: np.ndarray) -> float:
    """Warping error of Lai et al. 2018 (arXiv 1808.00449), for values 0 to 1.

    Mean squared difference of frame t and frame t+1 warped onto it, over the visible pixels and the
    channels of a pair of frames, then the mean of the pairs. Blurred or frozen clips score well:
    read it together with the flow.

    Args:
        clip: [T, H, W, 3] uint8.
        source_flow: forward flow of the SOURCE clip.
        mask: the visible pixels, bool [T-1, H, W].

    Raises:
        UserError: no pair of frames has a visible pixel.
    """
    values = clip.astype(np.float32) / 255
    errors = np.square(warp(values[1:], source_flow) - values[:-1]).mean(-1)
    frames = zip(errors, mask, strict=True)
    pairs = [error[pixels].mean() for error, pixels in frames if pixels.any()]
    if not pairs:
        raise UserError(
            "no pixel of any frame can be followed into the next one: every frame is a new shot"
        )
    return float(np.mean(pairs))


def opencv() -> Any:
    """The module cv2. Raises UserError if OpenCV is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"optical flow and SSIM need OpenCV: {install_command('evaluation')}"
        ) from error
    return cv2
