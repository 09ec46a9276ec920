"""Still images, animations and folders of frames, through Pillow."""

import re
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.decode import Frame
from ivid2vid_jax.video.frame_converter import over_white
from ivid2vid_jax.video.frame_size import MAX_PIXELS, check_frame_size

STILLS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM", "TGA")
SEQUENCES = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")  # the pictures of an MPO are views, not moments
DEFAULT_DURATION = 100  # ms, of a frame that states none or at most 10, as browsers show it
JUNK = re.compile(r"\.|thumbs\.db$|desktop\.ini$", re.IGNORECASE)  # of operating systems

ERRORS: tuple[type[Exception], ...] = (  # that Pillow raises for files of any content
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, MemoryError),
    *(Image.DecompressionBombError, ZeroDivisionError, TypeError, KeyError, IndexError),
)


def open_image(path: Path) -> Image.Image:
    """Opens an image of an allowed format; raises what Pillow raises for anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=known_formats())
        except Image.DecompressionBombError as error:
            raise UserError(
                f"{path}: its size is above the limit of {MAX_PIXELS:,} pixels; scale it down first"
            ) from error
    check_frame_size(str(path), image.height, image.width)
    return image


def known_formats() -> list[str]:
    """The allowed formats that this Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_image(path: Path) -> bool:
    """Whether the file's content is an image or an animation that Pillow reads."""
    try:
        with open_image(path):
            return True
    except UserError:
        return True
    except ERRORS:
        return False


def image_frames(path: Path) -> Iterator[Frame]:
    """Yields the frames of an image file with their times; transparent pixels are white."""
    try:
        with open_image(path) as image:
            time = Fraction(0)
            size = image.size
            pictures = ImageSequence.Iterator(image) if image.format in SEQUENCES else [image]
            for picture in pictures:
                if picture.size != size:
                    return  # a thumbnail page of a TIFF
                yield Frame(to_rgb(picture), time)
                duration = picture.info.get("duration") or 0
                duration = duration if duration > 10 else DEFAULT_DURATION
                time += Fraction(round(duration), 1000)
    except ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: is not an image that can be read, or it is cut off ({error})"
        ) from error


def image_rate(path: Path) -> Fraction:
    """Frames per second of an animation, by the duration of its first frame."""
    times = [frame.time for _, frame in zip(range(2), image_frames(path), strict=False)]
    return 1 / (times[1] - times[0]) if len(times) == 2 else Fraction(8)


def to_rgb(image: Image.Image) -> np.ndarray:
    """[H, W, 3] uint8: upright by EXIF, 16-bit and float scaled to 8 bit, over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, np.float64)
        if image.mode.startswith("I"):
            grey = grey / 257  # 16 bit, whatever Pillow stores it in
        elif grey.size and grey.max() <= 1:
            grey = grey * 255
        grey8 = np.clip(np.round(grey), 0, 255).astype(np.uint8)
        return np.repeat(grey8[..., None], 3, axis=2)
    if image.has_transparency_data:
        return over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def folder_files(path: Path) -> list[Path]:
    """The images of a folder in natural order (2 before 10), without files of operating systems."""
    files = [
        file
        for file in path.iterdir()
        if file.suffix.lower() in STILLS and not JUNK.match(file.name) and file.is_file()
    ]
    if not files:
        raise UserError(f"{path}: holds no frames ({', '.join(STILLS)})")
    return sorted(files, key=natural_key)


def natural_key(file: Path) -> list[tuple[int, int | str]]:
    """Sorts the numbers in a name by value."""
    parts = re.split(r"(\d+)", file.name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def check_folder(path: Path) -> None:
    """UserError if the images of a folder differ in size; decodes only those whose headers do."""
    first, *others = folder_files(path)
    size = stored_size(first)
    for file in others:
        if stored_size(file) != size:
            check_same_size(file, next(image_frames(file)), next(image_frames(first)))


def stored_size(path: Path) -> tuple[int, int] | None:
    """(width, height) by the header, before any rotation; None if it cannot be read."""
    try:
        with open_image(path) as image:
            return image.size
    except ERRORS:
        return None


def folder_frames(path: Path, rate: Fraction) -> Iterator[Frame]:
    """Yields the images of a folder at a constant rate; all must have one size."""
    first = None
    for i, file in enumerate(folder_files(path)):
        frame = Frame(next(image_frames(file)).pixels, i / rate)
        first = first or frame
        check_same_size(file, frame, first)
        yield frame


def check_same_size(file: Path, frame: Frame, first: Frame) -> None:
    """UserError if a frame of a folder has another size than the first."""
    if frame.pixels.shape != first.pixels.shape:
        height, width = frame.pixels.shape[:2]
        raise UserError(
            f"{file}: is {width}x{height}, the first frame is {first.pixels.shape[1]}x"
            f"{first.pixels.shape[0]}; a folder of images is one clip, its frames must have one "
            "size. To edit each image on its own, name the files, e.g. with a pattern: "
            f"{file.parent}/*{file.suffix}"
        )
