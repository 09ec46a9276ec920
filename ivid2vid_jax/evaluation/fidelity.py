"""PSNR and SSIM of an edited clip to its source, on whole frames or outside a mask of the edit."""

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.flow import opencv

SIGMA, RADIUS = 1.5, 5  # pixels, of SSIM's Gaussian window
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def squared_error(source: np.ndarray, edited: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error over pixels and channels, grey levels squared.

    Args:
        source: [T, H, W, 3] uint8.
        edited: [T, H, W, 3] uint8.
        mask: pixels to leave out, bool [T, H, W].

    Raises:
        UserError: the mask leaves no pixel.
    """
    errors = np.square(source.astype(np.float32) - edited).mean(-1)
    return float(errors.mean() if mask is None else errors[outside(mask)].mean())


def psnr(errors: np.ndarray) -> np.ndarray:
    """PSNR in dB of the mean of squared errors along the last axis; infinite if it is 0."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / np.mean(errors, axis=-1))


def ssim(source: np.ndarray, edited: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Structural similarity (Wang et al. 2004), mean over pixels, channels and frames.

    Gaussian window of 1.5 pixels (11 wide), population covariances, pixels whose window is within
    the frame: scikit-image's structural_similarity(gaussian_weights=True,
    use_sample_covariance=False).

    Args:
        source: [T, H, W, 3] uint8, at least 11 x 11 pixels.
        edited: of the same shape.
        mask: pixels to leave out, bool [T, H, W]. There the edit is replaced by the source, so that
            it cannot leak through the windows.

    Raises:
        UserError: the frames are too small, or the mask leaves no pixel.
    """
    if min(source.shape[1:3]) <= 2 * RADIUS:
        raise UserError(
            f"frames of {source.shape[2]}x{source.shape[1]} are too small for SSIM: "
            f"at least {2 * RADIUS + 1} pixels a side"
        )
    inner = (slice(None), slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
    if mask is None:
        return float(
            np.mean([ssim_map(a, b)[inner[1:]].mean() for a, b in zip(source, edited, strict=True)])
        )
    pixels = outside(mask[inner])
    maps = np.stack(
        [
            ssim_map(a, np.where(m[..., None], a, b))
            for a, b, m in zip(source, edited, mask, strict=True)
        ]
    )
    return float(maps[inner][pixels].mean())


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM around each pixel of two images, [H, W, 3]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a**2
    variance_b = blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    return (
        (2 * mean_a * mean_b + C1)
        * (2 * covariance + C2)
        / ((mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2))
    )


def blur(x: np.ndarray) -> np.ndarray:
    """Convolves an image with SSIM's Gaussian window."""
    return opencv().GaussianBlur(x, (2 * RADIUS + 1, 2 * RADIUS + 1), SIGMA)


def outside(mask: np.ndarray) -> np.ndarray:
    """The complement of a mask. Raises UserError if it is empty."""
    if mask.all():
        raise UserError("the mask covers the whole clip: nothing is outside the edit")
    return ~mask
