"""Clips from files: videos (through FFmpeg), animations, still images, folders of frames.

A file is known by its content, not by its name.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.container import (
    MOTION_JPEG,
    best_video_stream,
    default_audio_stream,
    open_container,
)
from ivid2vid_jax.video.decode import DEFAULT_RATE, Frame, container_frames
from ivid2vid_jax.video.fit import resize
from ivid2vid_jax.video.frame_size import FrameLimit
from ivid2vid_jax.video.images import (
    STILLS,
    check_folder,
    folder_frames,
    image_frames,
    image_rate,
    is_image,
)

ANIMATIONS = (".gif", ".webp", ".apng", ".avif")

__all__ = ["ANIMATIONS", "Clip", "Frame", "is_still", "open_clip", "open_container", "resample"]


@dataclasses.dataclass
class Clip:
    """A clip on disk, decoded anew at each pass of `frames()`, so that memory holds one frame.

    start, end: seconds as a player shows them; frames with start <= time < end are taken. fps:
    resample to this rate (the frame shown at each instant), None keeps the file's own times.
    rate: mean frames/s of the file. limit: of the frames in the range, None for no limit.
    """

    path: Path
    start: Fraction | None = None
    end: Fraction | None = None
    fps: Fraction | None = None
    rate: Fraction = DEFAULT_RATE
    height: int = 0
    width: int = 0
    has_audio: bool = False
    limit: FrameLimit | None = None

    @cached_property
    def kind(self) -> str:
        """`folder`, `image` (a still or an animation) or `video`, by content."""
        if self.path.is_dir():
            return "folder"
        if self.path.suffix.lower() in MOTION_JPEG:
            return "video"
        named_image = self.path.suffix.lower() in (*STILLS, ".gif")
        if is_image(self.path):
            return "image"
        return "image" if named_image and not is_video(self.path) else "video"

    @property
    def is_container(self) -> bool:
        """Whether the clip is a video file, not an image, an animation or a folder."""
        return self.kind == "video"

    def has_one_frame(self) -> bool:
        """Whether the chosen range is a single frame."""
        return sum(1 for _ in islice(self.frames(), 2)) == 1

    def frames(self, size: tuple[int, int] | None = None) -> Iterator[Frame]:
        """Yields the chosen frames in order, resampled to `size` (height, width) if it is given.

        Videos are resampled while their colours are converted, which is faster than afterwards.
        Raises UserError where the file breaks off, and above the limit.
        """
        started = (
            frame for frame in decode(self, size) if self.start is None or frame.time >= self.start
        )
        selected = takewhile(lambda frame: self.end is None or frame.time < self.end, started)
        frames = resample(selected, self.fps) if self.fps else selected
        return self.limit.checked(str(self.path), frames) if self.limit else frames


def open_clip(
    path: str | Path,
    start: float | None = None,
    end: float | None = None,
    fps: float | Fraction | None = None,
    limit: FrameLimit | None = None,
) -> Clip:
    """Opens a clip and decodes its first frame, for size and sanity.

    Raises UserError: no such file, empty, not a video, an empty range, a rate that is not positive,
    or more frames than the limit.
    """
    path = Path(path).expanduser()
    if fps is not None and not 0 < fps <= 1000:
        raise UserError(f"fps {fps} must be above 0 and at most 1000")
    if start is not None and not start >= 0:
        raise UserError(f"start {start} must be 0 or later")
    if end is not None and not end > (start or 0):
        raise UserError(f"end {end} must be later than start {start or 0}")
    check_regular(path)
    clip = Clip(path, exact_fraction(start), exact_fraction(end), exact_fraction(fps, 1001))
    clip.limit = limit
    if clip.kind == "folder":
        check_folder(path)
        clip.rate = clip.fps or DEFAULT_RATE
    elif clip.kind == "image":
        clip.rate = image_rate(path)
    else:
        with open_container(path) as container:
            stream = best_video_stream(container)
            clip.rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
            clip.has_audio = default_audio_stream(container) is not None
            if limit is not None:
                limit.check(str(path), expected_frames(clip, container, stream, limit.frames))
    first = next(clip.frames(), None)
    if first is None:
        until = "its end" if end is None else f"{end} s"
        raise UserError(f"{path}: holds no frame between {start or 0} s and {until}")
    clip.height, clip.width = first.pixels.shape[:2]
    return clip


def expected_frames(clip: Clip, container: InputContainer, stream: VideoStream, most: int) -> int:
    """Frames of the chosen range by the headers, or by the packets; nothing is decoded.

    Packets are counted, up to one above `most`, if the headers tell nothing or more than its half.
    """
    start, duration = clip.start or Fraction(0), Fraction(container.duration or 0, av.time_base)
    if clip.fps:
        ends = [end for end in (clip.end, duration) if end]
        return int((min(ends) - start) * clip.fps) if ends else 0
    announced = stream.frames or duration * clip.rate
    if 0 < announced <= most / 2:
        return int(announced)
    origin, count = Fraction(container.start_time or 0, av.time_base), 0
    for packet in demux(container, stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        time = None if stamp is None else stamp * packet.time_base - origin
        inside = time is None or (time >= start and (clip.end is None or time < clip.end))
        count += bool(packet.size) and inside
        if count > most:
            break
    return count


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Yields the packets up to the first one that cannot be read."""
    with contextlib.suppress(av.error.FFmpegError):
        yield from container.demux(stream)


def is_video(path: Path) -> bool:
    """Whether the file's content is a video."""
    try:
        open_container(path).close()
    except UserError:
        return False
    return True


def check_regular(path: Path) -> None:
    """Raises UserError unless the path is a folder or a regular file that holds something."""
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file")
        if not path.is_dir() and not path.is_file():
            raise UserError(f"{path}: is neither a regular file nor a folder")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path}: is empty (0 bytes)")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def exact_fraction(value: float | Fraction | None, denominator: int = 10**6) -> Fraction | None:
    """The fraction that a typed decimal means: 3.2 s is 16/5 s, not the float a little above it."""
    return None if value is None else Fraction(value).limit_denominator(denominator)


def is_still(path: Path) -> bool:
    """Whether a file has the name of a still image (webp is written as an animation)."""
    return path.suffix.lower() in STILLS and path.suffix.lower() not in ANIMATIONS


def decode(clip: Clip, size: tuple[int, int] | None) -> Iterator[Frame]:
    """Yields all frames of the file, whatever its kind; those before the start may be left out."""
    if clip.kind == "video":
        return container_frames(clip.path, clip.start, size)
    if clip.kind == "folder":
        frames = folder_frames(clip.path, clip.rate)
    else:
        frames = image_frames(clip.path)
    return (Frame(resize(pixels, size or pixels.shape[:2]), time) for pixels, time in frames)


def resample(frames: Iterator[Frame], fps: Fraction) -> Iterator[Frame]:
    """Resamples to a constant rate: at each instant the frame that is on show."""
    current, begin, n = None, Fraction(0), 0
    for frame in frames:
        if current is None:
            begin = frame.time
        while current is not None and begin + n / fps < frame.time:
            yield Frame(current.pixels, begin + n / fps)
            n += 1
        current = frame
    if current is not None and (n == 0 or begin + n / fps <= current.time):
        yield Frame(current.pixels, begin + n / fps)
