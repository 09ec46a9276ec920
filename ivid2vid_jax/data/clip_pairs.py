"""A source clip and its edited clip, read from files and brought to one size and length."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivid2vid_jax.errors import UserError

if TYPE_CHECKING:
    from ivid2vid_jax.video.read import Clip

# Largest difference in length, as a share of the longer clip; also the limit for frame rates.
MAX_LENGTH_DIFFERENCE = 0.1
# Largest difference in aspect ratio. 832x480 with 1280x720 is common: they differ by 2.5%.
MAX_ASPECT_DIFFERENCE = 0.03


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How clips are read.

    Attributes:
        size: pixels of the shorter side; smaller clips are not enlarged.
        fps: frame rate to resample to; None keeps the clip's own.
        frames: number of frames to read; None reads all.
    """

    size: int = 256
    fps: float | None = None
    frames: int | None = None


def read_pair(
    source: Path, edited: Path, settings: ClipSettings
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both clips in one size and length, [T, H, W, 3] uint8, and their frames/s.

    Raises UserError like `read_clips`.
    """
    first, second, fps = read_clips(source, edited, settings)
    length = min(len(first), len(second))
    return first[:length], second[:length], fps


def read_clips(
    source: Path, edited: Path, settings: ClipSettings
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both clips in one size, each in its own length, [T, H, W, 3] uint8, and their frames/s.

    Raises:
        UserError: a clip cannot be read, or their rates, aspect ratios or lengths differ too much.
    """
    clips = [open_to_read(path, settings) for path in (source, edited)]
    rates = [float(clip.rate) for clip in clips]
    slowest, fastest = min(rates), max(rates)
    by_number = settings.fps is None and all(clip.is_container for clip in clips)
    if by_number and fastest > (1 + MAX_LENGTH_DIFFERENCE) * slowest:
        raise UserError(
            f"the source runs at {rates[0]:g} frames/s and the edited clip at {rates[1]:g}: "
            "which frames belong together is unknown; resample both by time (--fps)"
        )
    size = common_size([(clip.height, clip.width) for clip in clips], settings.size)
    first, second = (read_fitted(clip, size, settings.frames) for clip in clips)
    shorter, longer = sorted((len(first), len(second)))
    if longer - shorter > MAX_LENGTH_DIFFERENCE * longer:
        raise UserError(
            f"the source has {len(first)} frames and the edited clip {len(second)}: "
            f"more than {MAX_LENGTH_DIFFERENCE:.0%} apart"
        )
    return first, second, float(clips[0].fps or clips[0].rate)


def open_to_read(path: Path, settings: ClipSettings) -> "Clip":
    """Opens a clip of which all frames, or the first `settings.frames`, are held in memory."""
    from ivid2vid_jax.video.frame_size import FrameLimit
    from ivid2vid_jax.video.read import open_clip  # imported late: only this needs PyAV

    limit = FrameLimit(way_out="limit the frames (--frames, of evaluate --clip-frames) or cut it")
    return open_clip(path, fps=settings.fps, limit=None if settings.frames else limit)


def common_size(sizes: list[tuple[int, int]], shorter_side: int) -> tuple[int, int]:
    """The size (height, width) of the smaller clip, its shorter side at most `shorter_side`.

    Raises UserError if the aspect ratios differ.
    """
    aspects = [width / height for height, width in sizes]
    if max(aspects) > (1 + MAX_ASPECT_DIFFERENCE) * min(aspects):
        (h0, w0), (h1, w1) = sizes
        raise UserError(
            f"the source is {w0}x{h0} and the edited clip {w1}x{h1}: "
            f"their shapes differ by more than {MAX_ASPECT_DIFFERENCE:.0%}"
        )
    height, width = min(sizes, key=min)
    scale = min(1, shorter_side / min(height, width))
    return round(height * scale), round(width * scale)


def read_fitted(clip: "Clip", size: tuple[int, int], frames: int | None) -> np.ndarray:
    """The first frames of a clip in `size` (height, width); None reads all.

    Each frame is resized when it is decoded: full-size frames are never held together.
    """
    return np.stack([frame.pixels for frame in islice(clip.frames(size), frames)])
