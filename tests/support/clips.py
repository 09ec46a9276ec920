"""Clips whose motion is known."""

import numpy as np
from scipy.ndimage import gaussian_filter


def texture(side: int = 256, seed: int = 0, smooth: float = 2.0) -> np.ndarray:
    """A picture [side, side, 3] uint8 with detail everywhere that wraps around at its edges."""
    noise = gaussian_filter(
        np.random.default_rng(seed).random((side, side, 3)), (smooth, smooth, 0), mode="wrap"
    )
    return np.round(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def moving(dx: int, dy: int, frames: int = 4, size: int = 64, seed: int = 0) -> np.ndarray:
    """[T, size, size, 3] uint8: a texture that moves by (dx, dy) pixels per frame."""
    picture = texture(seed=seed)
    return np.stack(
        [
            np.roll(picture, (t * dy, t * dx), (0, 1))[60 : 60 + size, 60 : 60 + size]
            for t in range(frames)
        ]
    )


def static(frames: int = 4, size: int = 64, seed: int = 0) -> np.ndarray:
    """[T, size, size, 3] uint8: a texture at rest."""
    return moving(0, 0, frames, size, seed)
