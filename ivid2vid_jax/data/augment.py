"""Cuts a training clip out of a record: which frames, which window of each, mirrored or not. Drawn once and applied to both clips alike."""

import dataclasses
import re

import numpy as np
from PIL import Image

LEAST_WINDOW, MOST_WINDOW = (
    0.6,
    0.85,
)  # shares of the shorter side that a travelling window keeps: it needs room to travel
MAX_PAN = 0.5  # window sides along an axis over the whole clip: even a panorama must not rush past
SIDES = re.compile(
    r"\b(left|right)", re.IGNORECASE
)  # also "leftmost" and "right-hand", but not "bright" or "upright"


@dataclasses.dataclass(frozen=True, eq=False)
class Crop:
    """frames: [T] int, indices into the record's clip. boxes: [T, 4] float64, (left, top, right, bottom) of square windows in its pixels."""

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
    """A cut of a clip of that shape, (T, H, W, ...); the arguments are those of `LoaderConfig`.

    A one-frame clip of which more frames are wanted becomes a moving clip: the window travels.
    """
    length, height, width = shape[:3]
    moving = length == 1 and frames > 1
    chosen = np.zeros(frames, int) if moving else choose_frames(rng, length, frames, stride)
    boxes = (
        travelling(rng, height, width, frames)
        if moving
        else resting(rng, height, width, frames, crop)
    )
    return Crop(chosen, boxes, bool(rng.random() < flip))


def choose_frames(rng: np.random.Generator, length: int, frames: int, stride: int) -> np.ndarray:
    """[frames] indices with a random start and a random step of 1..stride, as far as the clip is long enough."""
    longest = max(1, (length - 1) // max(frames - 1, 1))
    step = int(rng.integers(1, min(stride, longest) + 1))
    start = int(rng.integers(length - (frames - 1) * step))
    return start + step * np.arange(frames)


def resting(
    rng: np.random.Generator, height: int, width: int, frames: int, crop: float
) -> np.ndarray:
    """[frames, 4]: one window of whole pixels for all frames; in the middle and as large as fits where crop is 1."""
    side = min(height, width)
    if crop == 1:
        left, top = (width - side) // 2, (height - side) // 2
    else:
        side = max(1, round(side * rng.uniform(crop, 1)))
        left, top = rng.integers(width - side + 1), rng.integers(height - side + 1)
    return np.tile(np.array([left, top, left + side, top + side], float), (frames, 1))


def travelling(rng: np.random.Generator, height: int, width: int, frames: int) -> np.ndarray:
    """[frames, 4]: a window that goes at an even pace, in fractions of pixels, from one random place to another."""
    side = min(height, width) * rng.uniform(LEAST_WINDOW, MOST_WINDOW)
    start, end = rng.uniform(0, 1, (2, 2)) * (np.array([width, height]) - side)
    end = start + np.clip(end - start, -MAX_PAN * side, MAX_PAN * side)
    corners = np.linspace(start, end, frames)
    return np.hstack([corners, corners + side])


def apply_crop(clip: np.ndarray, cut: Crop, size: int) -> np.ndarray:
    """[T, H, W, 3] uint8 -> [frames, size, size, 3] uint8, contiguous."""
    windows = np.stack(
        [
            window(clip[frame], box, size)
            for frame, box in zip(cut.frames, cut.boxes.tolist(), strict=True)
        ]
    )
    return np.ascontiguousarray(windows[:, :, ::-1]) if cut.mirrored else windows


def window(frame: np.ndarray, box: list[float], size: int) -> np.ndarray:
    """The box of a frame, [size, size, 3]: by antialiased Lanczos, or the pixels themselves where they fit one to one."""
    left, top, right, bottom = box
    if right - left == bottom - top == size and left.is_integer() and top.is_integer():
        return frame[int(top) : int(bottom), int(left) : int(right)]
    return np.asarray(
        Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS, box=tuple(box))
    )


def mentions_side(*texts: str) -> bool:
    """Whether any of the texts speaks of left or right, so that a mirrored clip would belie it."""
    return any(SIDES.search(text) for text in texts)
