"""Clips from files: anything FFmpeg decodes (through PyAV), gif and webp, single images, folders of frames."""

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from ivid2vid_jax.utils.errors import UserError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
ANIMATIONS = (".gif", ".webp")
DEFAULT_RATE = Fraction(8)  # frames/s where the input has no clock (folders of frames)


class Frame(NamedTuple):
    """pixels: [H, W, 3] uint8, upright. time: seconds since the file's start, exact."""

    pixels: np.ndarray
    time: Fraction


@dataclasses.dataclass
class Clip:
    """A clip on disk, decoded anew at each pass of `frames()`, so that memory holds one frame.

    start, end: seconds; frames with start <= time < end are taken. fps: resample to this rate (the frame shown at each
    instant), None keeps the file's own times. rate: mean frames/s of the file.
    """

    path: Path
    start: Fraction | None = None
    end: Fraction | None = None
    fps: Fraction | None = None
    rate: Fraction = DEFAULT_RATE
    height: int = 0
    width: int = 0
    has_audio: bool = False

    @property
    def is_container(self) -> bool:
        """Whether the clip is a video file, not an image, an animation or a folder."""
        return self.path.is_file() and self.path.suffix.lower() not in IMAGES + ANIMATIONS

    def has_one_frame(self) -> bool:
        """Whether the chosen range is a single frame."""
        return sum(1 for _ in islice(self.frames(), 2)) == 1

    def frames(self) -> Iterator[Frame]:
        """The chosen frames in order. Raises UserError, naming the place, where the file breaks off."""
        started = (
            frame for frame in decode(self) if self.start is None or frame.time >= self.start
        )
        chosen = takewhile(lambda frame: self.end is None or frame.time < self.end, started)
        return resample(chosen, self.fps) if self.fps else chosen


def open_clip(
    path: str | Path,
    start: float | None = None,
    end: float | None = None,
    fps: float | Fraction | None = None,
) -> Clip:
    """Opens a clip and decodes its first frame, for size and sanity.

    Raises UserError: no such file, empty, not a video, an empty range, or a rate that is not positive.
    """
    path = Path(path).expanduser()
    if fps is not None and not 0 < fps <= 1000:
        raise UserError(f"fps {fps} must be above 0 and at most 1000")
    if start is not None and not start >= 0:
        raise UserError(f"start {start} must be 0 or later")
    if end is not None and not end > (start or 0):
        raise UserError(f"end {end} must be later than start {start or 0}")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes)")
    clip = Clip(path, exact_fraction(start), exact_fraction(end), exact_fraction(fps, 1001))
    if path.is_dir():
        clip.rate = clip.fps or DEFAULT_RATE
    elif clip.is_container:
        with open_container(path) as container:
            stream = container.streams.video[0]
            clip.rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
            clip.has_audio = bool(container.streams.audio)
    first = next(clip.frames(), None)
    if first is None:
        raise UserError(
            f"{path}: holds no frame between {start or 0} s and {'its end' if end is None else f'{end} s'}"
        )
    clip.height, clip.width = first.pixels.shape[:2]
    return clip


def exact_fraction(value: float | Fraction | None, denominator: int = 10**6) -> Fraction | None:
    """The fraction that a typed decimal means: 3.2 s is 16/5 s, not the float a little above it."""
    return None if value is None else Fraction(value).limit_denominator(denominator)


def is_still(path: Path) -> bool:
    """Whether the file is a single image by its name."""
    return path.suffix.lower() in IMAGES


def decode(clip: Clip) -> Iterator[Frame]:
    """All frames of the file, whatever its kind."""
    suffix = clip.path.suffix.lower()
    if clip.path.is_dir():
        return folder_frames(clip.path, clip.rate)
    if suffix in IMAGES + ANIMATIONS:
        return image_frames(clip.path)
    return container_frames(clip.path)


def open_container(path: Path):
    """A PyAV container with a video stream; UserError for anything else."""
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: is not a video that can be read, or it is cut off ({reason(error)})"
        ) from error
    if not container.streams.video:
        container.close()
        raise UserError(f"{path}: holds no video stream")
    return container


def container_frames(path: Path) -> Iterator[Frame]:
    """Frames with their true times, turned upright: FFmpeg's decoders leave rotation tags to the caller."""
    count, announced = 0, 0
    with open_container(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        announced = stream.frames
        try:
            for frame in container.decode(stream):
                pixels = frame.to_ndarray(format="rgb24")
                if frame.rotation:
                    pixels = np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
                if frame.pts is None or frame.time_base is None:
                    time = count / (stream.average_rate or DEFAULT_RATE)
                else:
                    time = frame.pts * frame.time_base
                count += 1
                yield Frame(pixels, Fraction(time))
        except av.error.FFmpegError as error:
            raise UserError(
                f"{path}: breaks off or is damaged after {count} frames ({reason(error)}); use --end, or repair the file"
            ) from error
    if count < 0.95 * announced - 1:
        raise UserError(
            f"{path}: announces {announced} frames but only {count} can be decoded; it is cut off or damaged"
        )


def reason(error: Exception) -> str:
    """The cause in FFmpeg's words, without its error number and path."""
    return getattr(error, "strerror", None) or str(error)


def image_frames(path: Path) -> Iterator[Frame]:
    """Frames of an image file with their durations; transparent pixels on white."""
    try:
        with Image.open(path) as image:
            time = Fraction(0)
            for picture in ImageSequence.Iterator(image):
                yield Frame(over_white(picture), time)
                time += Fraction(round(picture.info.get("duration", 125) or 125), 1000)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(
            f"{path}: is not an image that can be read, or it is cut off ({error})"
        ) from error


def over_white(picture: Image.Image) -> np.ndarray:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return np.asarray(picture.convert("RGB"))
    rgba = picture.convert("RGBA")
    return np.asarray(
        Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    )


def folder_frames(path: Path, rate: Fraction) -> Iterator[Frame]:
    """The images of a folder in the order of their names, all of one size."""
    files = sorted(file for file in path.iterdir() if is_still(file))
    if not files:
        raise UserError(f"{path}: holds no frames ({', '.join(IMAGES)})")
    size = None
    for i, file in enumerate(files):
        pixels = next(image_frames(file)).pixels
        size = size or pixels.shape
        if pixels.shape != size:
            raise UserError(
                f"{file}: is {pixels.shape[1]}x{pixels.shape[0]}, the first frame is {size[1]}x{size[0]}; frames must be of one size"
            )
        yield Frame(pixels, i / rate)


def resample(frames: Iterator[Frame], fps: Fraction) -> Iterator[Frame]:
    """A constant rate: at each instant the frame that is on show."""
    held, begin, n = None, None, 0
    for frame in frames:
        if held is None:
            begin = frame.time
        while held is not None and begin + n / fps < frame.time:
            yield Frame(held.pixels, begin + n / fps)
            n += 1
        held = frame
    if held is not None and (n == 0 or begin + n / fps <= held.time):
        yield Frame(held.pixels, begin + n / fps)
