"""Clips to files: mp4 and webm (through PyAV, sound kept), gif and webp, folders of frames."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.video.frame_converter import HD_LINES
from ivid2vid_jax.video.read import Clip
from ivid2vid_jax.video.sound import SoundPlan, SoundTrack, plan_track

# Without its macroblock tree, x264 writes the same bytes for the same frames; with it, a small clip
# in a thousand or ten thousand differs where other threads run (tests/video/test_video.py).
DETERMINISTIC_X264 = {"x264-params": "mbtree=0"}

# container -> video encoder, its options, sound codecs that may be copied, encoder for others
CONTAINERS = {
    ".mp4": (
        "libx264",
        {"crf": "16", "preset": "medium"} | DETERMINISTIC_X264,
        ("aac", "mp3", "ac3", "alac"),
        "aac",
    ),
    ".webm": (
        "libvpx-vp9",
        {"crf": "20", "b": "0", "row-mt": "1", "cpu-used": "4"},
        ("opus", "vorbis"),
        "libopus",
    ),
}
ANIMATIONS = (".gif", ".webp")
STILLS = (".png", ".jpg", ".jpeg")
FALLBACK_TIME_BASE = 90_000  # ticks/s for times that are not a multiple of one frame
ROUNDING = Fraction(1, 1000)  # s, to which Matroska and WebM round the times of a constant rate
MIN_ROOM = 64 * 2**20  # bytes that must be free on the disk
BT709, BT601 = 1, 6  # ISO/IEC 23091-2: matrix, transfer and primaries


def check_output(path: Path) -> None:
    """Raises UserError if `path` cannot be written, before anything is computed; makes its folder.

    An unknown suffix, no folder, no permission, a name that is too long, no room on the disk, or a
    frame folder that holds things.
    """
    suffix = path.suffix.lower()
    if suffix not in (*CONTAINERS, *ANIMATIONS, *STILLS, ""):
        raise UserError(
            f"{path}: cannot write {suffix} files; use "
            f"{', '.join([*CONTAINERS, *ANIMATIONS, *STILLS])} or a folder name for frames"
        )
    parent = path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
        path.exists()
        longest = os.pathconf(parent, "PC_NAME_MAX")
        room = shutil.disk_usage(parent).free
    except OSError as error:
        raise UserError(
            f"{path}: the folder {parent} cannot be written ({error.strerror})"
        ) from error
    if len(os.fsencode(path.name)) + len("_compare") > longest:
        raise UserError(f"{path}: the name is longer than {longest} bytes; shorten it")
    if room < MIN_ROOM:
        raise UserError(
            f"{path}: only {room / 2**20:.0f} MB are free in {parent}, {MIN_ROOM // 2**20} MB are "
            "needed; make room or name another folder"
        )
    if path.is_dir() and (suffix or any(path.iterdir())):
        raise UserError(f"{path}: is a folder that is not empty; name a file or a new folder")
    if path.is_file() and not suffix:
        raise UserError(
            f"{path}: is a file; give it an ending ({', '.join(CONTAINERS)}) or name a new folder"
        )


def unused_path(path: Path, suffix: str | None = None) -> Path:
    """The path, or a numbered one if something is there: edited-2.mp4, edited-3.mp4, ...

    suffix: what follows the number; None means the path's own suffix.
    """
    suffix = path.suffix if suffix is None else suffix
    stem = path.name.removesuffix(suffix)
    numbered = (path.with_name(f"{stem}-{n}{suffix}") for n in itertools.count(2))
    candidates = itertools.chain([path], numbered)
    return next(name for name in candidates if not name.exists() or is_empty_folder(name))


def is_empty_folder(path: Path) -> bool:
    """Whether the path is a folder that holds nothing."""
    return path.is_dir() and not any(path.iterdir())


def plan_sound(path: Path, clip: Clip) -> SoundPlan | None:
    """Decides how a clip's sound is written to `path`; None if either holds no sound.

    This reads the whole sound track once, so plan once and hand the plan on.
    """
    if path.suffix.lower() not in CONTAINERS or not clip.has_audio:
        return None
    _, _, copied, encoder = CONTAINERS[path.suffix.lower()]
    return plan_track(clip.path, copied, encoder)


def check_encodable(
    path: Path, size: tuple[int, int], rate: Fraction, sound: SoundPlan | None
) -> None:
    """Encodes a few grey frames of a size, with the sound track, to a temporary file.

    Raises UserError if the encoder, the layout or the rate does not work, before anything is
    computed. Only video containers are tried.
    """
    if path.suffix.lower() not in CONTAINERS:
        return
    grey = np.full((*size, 3), 128, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / f"trial{path.suffix}"
        try:
            write_clip(trial, iter([grey] * 2), [Fraction(0), 1 / Fraction(rate)], rate, sound)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"{path}: {size[1]}x{size[0]} at {float(rate):g} frames/s cannot be written "
                f"({error}); choose another size, rate or container"
            ) from error


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    times: list[Fraction],
    rate: Fraction,
    sound: SoundPlan | None = None,
) -> None:
    """Writes frames ([H, W, 3] uint8, one size) to `path`, in the format of its suffix.

    Without a suffix a folder of PNGs is written. The file appears whole or not at all. mp4 holds
    H.264 in 4:2:0: odd sides are extended by one repeated row or column.

    Args:
        path: the target.
        frames: the pixels.
        times: seconds at which the frames are shown, increasing.
        rate: nominal frames/s, and the duration of the last frame.
        sound: the sound to keep, cut to the times shown, by `plan_sound`.
    """
    suffix, begin = path.suffix.lower(), Fraction(times[0])
    times = [Fraction(time) - begin for time in times]
    with atomic_path(path) as target:
        if suffix in CONTAINERS:
            write_container(target, frames, times, Fraction(rate), sound, begin)
        elif suffix in ANIMATIONS:
            write_animation(target, frames, times, Fraction(rate))
        elif suffix in STILLS:
            Image.fromarray(next(iter(frames))).save(target, quality=95)
        else:
            target.mkdir()
            for i, pixels in enumerate(frames):
                Image.fromarray(pixels).save(target / f"{i:05d}.png")


def write_animation(
    path: Path, frames: Iterable[np.ndarray], times: list[Fraction], rate: Fraction
) -> None:
    """Writes gif or webp by Pillow; times are rounded (gif: 10 ms, webp: 1 ms) without drifting."""
    tick = 10 if path.suffix.lower() == ".gif" else 1
    marks = [round(time * 1000 / tick) * tick for time in [*times, times[-1] + 1 / rate]]
    durations = [max(b - a, tick) for a, b in itertools.pairwise(marks)]
    pictures = (Image.fromarray(pixels) for pixels in frames)
    first = next(pictures)
    options = dict(quality=90, method=4) if tick == 1 else dict(optimize=False)
    first.save(path, save_all=True, append_images=pictures, duration=durations, loop=0, **options)


def write_container(
    path: Path,
    frames: Iterable[np.ndarray],
    times: list[Fraction],
    rate: Fraction,
    sound: SoundPlan | None,
    begin: Fraction,
) -> None:
    """Writes mp4 or webm with colour tags, and the sound of a clip from `begin` on."""
    codec, options, _, _ = CONTAINERS[path.suffix.lower()]
    regular = all(abs(time - i / rate) <= ROUNDING for i, time in enumerate(times))
    if regular:
        times = [i / rate for i in range(len(times))]
    time_base = 1 / rate if regular else Fraction(1, FALLBACK_TIME_BASE)
    flags = {"movflags": "+faststart"} if path.suffix.lower() == ".mp4" else {}
    with av.open(str(path), "w", container_options=flags) as output:
        stream: VideoStream | None = None
        track = None
        for pixels, time in zip(frames, times, strict=True):
            if codec == "libx264":
                pixels = to_even_size(pixels)
            if stream is None:
                mean_rate = rate.limit_denominator(10**6)
                added = output.add_stream(codec, rate=mean_rate, options=options)
                stream = cast(VideoStream, added)
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = time_base
                tag_colours(stream.codec_context)
                if sound is not None:
                    track = SoundTrack(output, sound, begin)
            frame = to_yuv420(pixels)
            frame.pts, frame.time_base = round(time / time_base), time_base
            output.mux(stream.encode(frame))
        assert stream is not None, "there is at least one frame"
        output.mux(stream.encode())
        if track is not None:
            track.write(times[-1] + 1 / rate)


def to_even_size(pixels: np.ndarray) -> np.ndarray:
    """Repeats the last row or column where a side is odd: 4:2:0 needs even sides."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return pixels


def matrix_of(height: int) -> int:
    """The matrix that players assume for a height, which is also written as a tag."""
    return BT709 if height >= HD_LINES else BT601


def tag_colours(context: av.VideoCodecContext) -> None:
    """Tags matrix, primaries, transfer (BT.709 or BT.601) and limited range."""
    matrix = matrix_of(context.height)
    context.colorspace = context.color_primaries = context.color_trc = matrix
    context.color_range = 1


def to_yuv420(pixels: np.ndarray) -> av.VideoFrame:
    """[H, W, 3] uint8 to limited-range YUV 4:2:0 by the matrix of its height."""
    matrix = matrix_of(pixels.shape[0])
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = frame.reformat(
        format="yuv420p",
        dst_colorspace={BT709: 1, BT601: 5}[matrix],
        dst_color_range=1,
    )
    frame.colorspace, frame.color_range = matrix, 1
    frame.color_primaries = frame.color_trc = matrix
    return frame
