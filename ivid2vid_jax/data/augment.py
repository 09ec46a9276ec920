"""Random crops: which frames of a record, which square window of each frame, mirrored or not.

A crop is sampled once per record and applied to its source and its edited clip.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Side of a moving window as a share of the image's shorter side: the rest is room to move.
MIN_MOVING_SIDE, MAX_MOVING_SIDE = 0.6, 0.85
# Longest pan of a clip along each axis, in window sides: wide panoramas must not rush past.
MAX_PAN = 0.5
# Also matches "leftmost" and "right-hand", but not "bright" or "upright".
SIDE_WORDS = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, eq=False)
class Crop:
    """A cut-out of a clip.

    Attributes:
        frames: [T] int, indices of the record's frames.
        boxes: [T, 4] float64, square windows (left, top, right, bottom) in the record's pixels.
        mirrored: whether the windows are flipped left to right.
    """

    frames: np.ndarray
    boxes: np.ndarray
    mirrored: bool


def sample_crop(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    frames: int,
    stride: int,
    crop: float,
    flip: float,
) -> Crop:
    """Samples a crop of a clip.

    A one-frame clip becomes a moving clip if `frames` > 1: the window moves across the image.

    Args:
        rng: the generator.
        shape: of the clip, (T, H, W, ...).
        frames: number of frames to take.
        stride: see `LoaderConfig`.
        crop: see `LoaderConfig`.
        flip: see `LoaderConfig`.
    """
    length, height, width = shape[:3]
    if length == 1 and frames > 1:
        indices = np.zeros(frames, int)
        boxes = moving_boxes(rng, height, width, frames)
    else:
        indices = sample_frames(rng, length, frames, stride)
        boxes = fixed_boxes(rng, height, width, frames, crop)
    return Crop(indices, boxes, bool(rng.random() < flip))


def sample_frames(rng: np.random.Generator, length: int, frames: int, stride: int) -> np.ndarray:
    """Returns [frames] indices with a random start and a random step of 1..stride.

    Steps that need a clip longer than `length` are left out.
    """
    max_step = max(1, (length - 1) // max(frames - 1, 1))
    step = int(rng.integers(1, min(stride, max_step) + 1))
    start = int(rng.integers(length - (frames - 1) * step))
    return start + step * np.arange(frames)


def fixed_boxes(
    rng: np.random.Generator, height: int, width: int, frames: int, crop: float
) -> np.ndarray:
    """Returns [frames, 4]: one window of whole pixels for all frames; crop 1 is the centre crop."""
    side = min(height, width)
    if crop == 1:
        left, top = (width - side) // 2, (height - side) // 2
    else:
        side = max(1, round(side * rng.uniform(crop, 1)))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return np.tile(np.array([left, top, left + side, top + side], float), (frames, 1))


def moving_boxes(rng: np.random.Generator, height: int, width: int, frames: int) -> np.ndarray:
    """Returns [frames, 4]: a window that moves at constant speed between two random places.

    Its position is not rounded to whole pixels.
    """
    side = min(height, width) * rng.uniform(MIN_MOVING_SIDE, MAX_MOVING_SIDE)
    start, end = rng.uniform(0, 1, (2, 2)) * (np.array([width, height]) - side)
    end = start + np.clip(end - start, -MAX_PAN * side, MAX_PAN * side)
    corners = np.linspace(start, end, frames)
    return np.hstack([corners, corners + side])


def apply_crop(clip: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """[T, H, W, 3] uint8 -> [frames, size, size, 3] uint8, contiguous."""
    windows = np.stack(
        [
            resize_window(clip[index], box, size)
            for index, box in zip(crop.frames, crop.boxes.tolist(), strict=True)
        ]
    )
    return np.ascontiguousarray(windows[:, :, ::-1]) if crop.mirrored else windows


def resize_window(frame: np.ndarray, box: Sequence[float], size: int) -> np.ndarray:
    """[size, size, 3]: the window of a frame, by Lanczos; unchanged pixels if it fits exactly."""
    left, top, right, bottom = box
    if right - left == bottom - top == size and left.is_integer() and top.is_integer():
        return frame[int(top) : int(bottom), int(left) : int(right)]
    image = Image.fromarray(frame)
    resized = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    return np.asarray(resized)


def mentions_side(*texts: str) -> bool:
    """Whether any text says left or right: it would be wrong for a mirrored clip."""
    return any(SIDE_WORDS.search(text) for text in texts)
