"""Frames to the model's size and back: aspect kept, sides padded to the model's factor."""

import dataclasses

import numpy as np
from PIL import Image

from ivid2vid_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ResizePlan:
    """Maps frames of `source` size (height, width) to `padded` size.

    They are resized to `inner`, then their edges are repeated up to the model's multiple.
    """

    source: tuple[int, int]
    inner: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def plan(cls, source: tuple[int, int], size: int, factor: int) -> "ResizePlan":
        """size: pixels of the longer side. factor: what both sides must be a multiple of.

        Raises UserError for a size below the factor.
        """
        if size < factor:
            raise UserError(
                f"size {size} is too small: this model needs at least {factor} pixels a side"
            )
        scale = size / max(source)
        height, width = (max(1, round(side * scale)) for side in source)
        padded = -(-height // factor) * factor, -(-width // factor) * factor
        return cls(source, (height, width), padded)

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8, of the source or the inner size -> padded size, the picture centred."""
        (top, bottom), (left, right) = self.margins()
        return np.pad(
            resize(frame, self.inner), ((top, bottom), (left, right), (0, 0)), mode="edge"
        )

    def restore(self, frame: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 of the padded size -> the source size."""
        (top, _), (left, _) = self.margins()
        return resize(frame[top : top + self.inner[0], left : left + self.inner[1]], self.source)

    def margins(self) -> list[tuple[int, int]]:
        """Padding before and after, of the height and of the width."""
        return [
            ((outer - inner) // 2, outer - inner - (outer - inner) // 2)
            for inner, outer in zip(self.inner, self.padded, strict=True)
        ]


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 to `size` (height, width) by antialiased Lanczos."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.LANCZOS))
