"""Optical flow between consecutive frames, by OpenCV, and what is measured with it.

The flow is Farneback's (2003), computed on luma with FARNEBACK's settings: no weights, the same on every machine. Values of another estimator (RAFT,
FlowNet2, GMFlow, as other papers use) are other numbers.
"""

import numpy as np

from ivid2vid_jax.evaluation.temporal import grey, moving
from ivid2vid_jax.utils.errors import UserError

FARNEBACK = dict(
    pyr_scale=0.5, levels=4, winsize=15, iterations=5, poly_n=7, poly_sigma=1.5, flags=0
)


def forward(clip: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] uint8 -> [T-1, H, W, 2], (dx, dy) in pixels: what lies at x in frame t lies at x + flow in frame t+1.

    Raises UserError for fewer than 2 frames.
    """
    luma, cv2 = grey(moving(clip)), opencv()
    return np.stack(
        [
            cv2.calcOpticalFlowFarneback(a, b, None, **FARNEBACK)
            for a, b in zip(luma, luma[1:], strict=False)
        ]
    )


def backward(clip: np.ndarray) -> np.ndarray:
    """As `forward`, from frame t+1 to frame t."""
    return forward(clip[::-1])[::-1]


def magnitude(flow: np.ndarray) -> float:
    """Mean length of the vectors, pixels a frame."""
    return float(np.linalg.norm(flow, axis=-1).mean())


def end_point_error(flow: np.ndarray, wanted: np.ndarray) -> float:
    """Mean length of the vectors' differences, pixels a frame. V2VBench's motion alignment is this, negative, with GMFlow."""
    return magnitude(flow - wanted)


def warp(images: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] float32 seen through the flow [N, H, W, 2]: the value at x is that of x + flow, bilinear, edges repeated."""
    cv2, places = opencv(), targets(flow)
    pairs = zip(images, np.moveaxis(places, -1, 1), strict=True)
    return np.stack(
        [
            cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for image, (x, y) in pairs
        ]
    )


def targets(flow: np.ndarray) -> np.ndarray:
    """Where the flow [N, H, W, 2] leads: x + flow."""
    H, W = flow.shape[1:3]
    return (flow + np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1)).astype(np.float32)


def visible(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Pixels of frame t that frame t+1 shows too, bool [N, H, W]: the flow there and the flow back cancel, no motion boundary, within the frame.

    Squared lengths, as Sundaram et al. (2010) and Ruder et al. (arXiv 1604.08610, equations 5 and 6) and after them Lai et al.:
    occluded where |there + back|^2 > 0.01 (|there|^2 + |back|^2) + 0.5, a boundary where |grad u|^2 + |grad v|^2 > 0.01 |there|^2 + 0.002, with differences
    to the next pixel as gradients, 0 at the last. Theirs counts pixels whose flow leaves the frame, where the image's edge is repeated; here they are left out.
    """
    returned = warp(back, there)
    length, length_back, miss = (np.square(f).sum(-1) for f in (there, returned, there + returned))
    gradient = sum(
        np.square(np.diff(there, axis=axis, append=np.take(there, [-1], axis))).sum(-1)
        for axis in (1, 2)
    )
    places, (H, W) = targets(there), there.shape[1:3]
    inside = ((places >= -0.5) & (places <= np.array([W, H]) - 0.5)).all(-1)
    return (
        inside & (miss <= 0.01 * (length + length_back) + 0.5) & (gradient <= 0.01 * length + 0.002)
    )


def warping_error(clip: np.ndarray, there: np.ndarray, seen: np.ndarray) -> float:
    """Lai et al. 2018 (arXiv 1808.00449): mean squared difference, values 0 to 1, of frame t and frame t+1 warped onto it, over the pixels `seen`
    [T-1, H, W] and the channels of a pair of frames, then the mean of the pairs. there: the SOURCE clip's flow.

    A blurry or frozen clip scores well: read it beside the flow. Raises UserError where no pair has a visible pixel.
    """
    values = clip.astype(np.float32) / 255
    errors = np.square(warp(values[1:], there) - values[:-1]).mean(-1)
    pairs = [error[mask].mean() for error, mask in zip(errors, seen, strict=True) if mask.any()]
    if not pairs:
        raise UserError(
            "no pixel of any frame can be followed into the next one: the clip cuts from shot to shot"
        )
    return float(np.mean(pairs))


def opencv():
    """OpenCV, for the metrics that need it; UserError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "optical flow and SSIM need OpenCV: pip install 'ivid2vid_jax[evaluation]'"
        ) from error
    return cv2
