"""How near an edited clip stays to its source, on the whole frame or outside the place of the edit."""

import numpy as np

from ivid2vid_jax.evaluation.flow import opencv
from ivid2vid_jax.utils.errors import UserError

SIGMA, RADIUS = 1.5, 5  # pixels, of SSIM's Gaussian window
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def squared_error(source: np.ndarray, edited: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean over pixels and channels, grey levels squared; clips [T, H, W, 3] uint8. mask: bool [T, H, W], pixels left out.

    Raises UserError where the mask leaves none.
    """
    errors = np.square(source.astype(np.float32) - edited).mean(-1)
    return float(errors.mean() if mask is None else errors[outside(mask)].mean())


def psnr(errors: np.ndarray) -> np.ndarray:
    """DB of the mean of squared errors along the last axis; infinite where there is none."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / np.mean(errors, axis=-1))


def ssim(source: np.ndarray, edited: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Wang et al. 2004: Gaussian window of 1.5 pixels (11 wide), population covariances, each channel by itself, mean over the pixels whose window
    lies within the frame; clips [T, H, W, 3] uint8, at least 11 x 11 pixels.

    mask: bool [T, H, W], pixels left out; what the edit has there is replaced by the source, so that it cannot leak through the windows.
    Reference: scikit-image's structural_similarity(gaussian_weights=True, use_sample_covariance=False). Raises UserError for frames too small, or
    where the mask leaves no pixel.
    """
    if min(source.shape[1:3]) <= 2 * RADIUS:
        raise UserError(
            f"frames of {source.shape[2]}x{source.shape[1]} are too small for SSIM: at least {2 * RADIUS + 1} pixels a side"
        )
    inner = (slice(None), slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
    if mask is None:
        return float(
            np.mean([ssim_map(a, b)[inner[1:]].mean() for a, b in zip(source, edited, strict=True)])
        )
    shown = outside(mask[inner])
    maps = np.stack(
        [
            ssim_map(a, np.where(m[..., None], a, b))
            for a, b, m in zip(source, edited, mask, strict=True)
        ]
    )
    return float(maps[inner][shown].mean())


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM around each pixel, [H, W, 3]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b, covariance = (
        blur(a * a) - mean_a**2,
        blur(b * b) - mean_b**2,
        blur(a * b) - mean_a * mean_b,
    )
    return (
        (2 * mean_a * mean_b + C1)
        * (2 * covariance + C2)
        / ((mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2))
    )


def blur(x: np.ndarray) -> np.ndarray:
    return opencv().GaussianBlur(x, (2 * RADIUS + 1, 2 * RADIUS + 1), SIGMA)


def outside(mask: np.ndarray) -> np.ndarray:
    if mask.all():
        raise UserError("the mask covers the whole clip: nothing is outside the edit")
    return ~mask
