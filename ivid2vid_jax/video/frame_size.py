"""Limits of what is read from media files, so that a file cannot demand unbounded memory."""

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from ivid2vid_jax.errors import UserError

MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 8192 * 8192  # of one frame: 200 MB as RGB
MAX_FRAMES = 10_000  # of a clip that is held as a whole: 5 minutes at 30 frames/s

Item = TypeVar("Item")


def check_frame_size(name: str, height: int, width: int) -> None:
    """Raises UserError for a frame that is larger than the limits, before it is decoded."""
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise UserError(
            f"{name}: frames of {width}x{height} pixels are above the limit of {MAX_PIXELS:,} "
            f"pixels ({MAX_SIDE} a side); scale it down first"
        )


class FrameLimit(NamedTuple):
    """The most frames that are taken of a clip, and what a user can do about a longer one."""

    frames: int = MAX_FRAMES
    way_out: str = "cut it or lower its frame rate"

    def check(self, name: str, count: int) -> None:
        """Raises UserError if there are more frames."""
        if count > self.frames:
            raise UserError(
                f"{name}: has more than {self.frames:,} frames, the limit; {self.way_out}"
            )

    def checked(self, name: str, frames: Iterator[Item]) -> Iterator[Item]:
        """Yields the frames; raises UserError at the first one above the limit."""
        for count, frame in enumerate(frames, 1):
            self.check(name, count)
            yield frame
