"""Clips to files: mp4 and webm (through PyAV, sound kept), gif and webp, folders of frames. Whole or not at all."""

import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.video.read import Clip

# Without its macroblock tree, x264 writes the same bytes for the same frames; with it, a small clip in a thousand or ten thousand
# differs where other threads run (tests/video/test_video.py).
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


def check_output(path: Path) -> None:
    """UserError where `path` cannot be written: unknown kind, no folder, no permission, a frame folder that holds things."""
    suffix = path.suffix.lower()
    if suffix not in (*CONTAINERS, *ANIMATIONS, *STILLS, ""):
        raise UserError(
            f"{path}: cannot write {suffix} files; use {', '.join([*CONTAINERS, *ANIMATIONS, *STILLS])} or a folder name for frames"
        )
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{path}: the folder {parent} does not exist; make it first")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: the folder {parent} cannot be written ({error.strerror})"
        ) from error
    if path.is_dir() and (suffix or any(path.iterdir())):
        raise UserError(f"{path}: is a folder that is not empty; name a file or a new folder")
    if path.is_file() and not suffix:
        raise UserError(
            f"{path}: is a file; give it an ending ({', '.join(CONTAINERS)}) or name a new folder"
        )


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    times: list[Fraction],
    rate: Fraction,
    sound: Clip | None = None,
) -> None:
    """Writes frames ([H, W, 3] uint8, one size) shown at `times` (seconds) to `path`, by its ending; no ending: a folder of PNGs.

    rate: nominal frames/s, and the duration of the last frame. sound: the clip whose sound track is kept, cut to the times
    shown; only mp4 and webm hold sound.
    """
    suffix, begin = path.suffix.lower(), times[0]
    times = [time - begin for time in times]
    with atomic_path(path) as target:
        if suffix in CONTAINERS:
            write_container(target, frames, times, rate, sound, begin)
        elif suffix in ANIMATIONS:
            write_animation(target, frames, times, rate)
        elif suffix in STILLS:
            Image.fromarray(next(iter(frames))).save(target, quality=95)
        else:
            target.mkdir()
            for i, pixels in enumerate(frames):
                Image.fromarray(pixels).save(target / f"{i:05d}.png")


def write_animation(
    path: Path, frames: Iterable[np.ndarray], times: list[Fraction], rate: Fraction
) -> None:
    """Gif or webp by Pillow; times are rounded to its milliseconds (gif: 10 ms) without drifting."""
    tick = 10 if path.suffix.lower() == ".gif" else 1
    marks = [round(time * 1000 / tick) * tick for time in [*times, times[-1] + 1 / rate]]
    durations = [max(b - a, tick) for a, b in zip(marks, marks[1:], strict=False)]
    pictures = (Image.fromarray(pixels) for pixels in frames)
    first = next(pictures)
    options = dict(quality=90, method=4) if tick == 1 else dict(optimize=False)
    first.save(path, save_all=True, append_images=pictures, duration=durations, loop=0, **options)


def write_container(
    path: Path,
    frames: Iterable[np.ndarray],
    times: list[Fraction],
    rate: Fraction,
    sound: Clip | None,
    begin: Fraction,
) -> None:
    """mp4 or webm. Odd sizes are kept: mp4 then stores full chroma, since halved chroma needs even sides."""
    codec, options, copied, sound_codec = CONTAINERS[path.suffix.lower()]
    regular = all(time == i / rate for i, time in enumerate(times))
    time_base = 1 / Fraction(rate) if regular else Fraction(1, FALLBACK_TIME_BASE)
    flags = {"movflags": "+faststart"} if path.suffix.lower() == ".mp4" else {}
    with av.open(str(path), "w", container_options=flags) as out:
        stream = None
        for pixels, time in zip(frames, times, strict=True):
            if stream is None:
                stream = out.add_stream(
                    codec, rate=Fraction(rate).limit_denominator(10**6), options=options
                )
                stream.height, stream.width = pixels.shape[:2]
                odd = stream.height % 2 or stream.width % 2
                stream.pix_fmt = "yuv444p" if odd and codec == "libx264" else "yuv420p"
                stream.codec_context.time_base = time_base
                track = (
                    SoundTrack(out, sound, begin, copied, sound_codec)
                    if sound is not None and sound.has_audio
                    else None
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if track:
            track.copy(times[-1] + 1 / rate)


class SoundTrack:
    """The first sound stream of a clip on its way into another container: packets copied where the container takes them,
    encoded anew where not.
    """

    def __init__(self, out, clip: Clip, begin: Fraction, copied: tuple[str, ...], encoder: str):
        self.out = out
        self.source = av.open(str(clip.path))
        self.input = self.source.streams.audio[0]
        self.begin = begin
        self.copied = self.input.codec_context.name in copied
        if self.copied:
            self.output = out.add_stream_from_template(self.input)
        else:
            rate = 48_000 if encoder == "libopus" else self.input.codec_context.sample_rate
            self.output = out.add_stream(
                encoder, rate=rate, layout=self.input.codec_context.layout.name
            )

    def copy(self, length: Fraction) -> None:
        """The sound from the clip's start, `length` seconds of it."""
        with self.source:
            if self.copied:
                self.copy_packets(length)
            else:
                self.encode(length)

    def copy_packets(self, length):
        shift = round(self.begin / self.input.time_base)
        for packet in self.source.demux(self.input):
            if packet.dts is None or packet.pts is None or (shift > 0 and packet.pts < shift):
                continue  # at shift 0 the packets before 0 stay: they prime the decoder
            if (packet.pts - shift) * packet.time_base >= length:
                break
            packet.pts, packet.dts, packet.stream = (
                packet.pts - shift,
                packet.dts - shift,
                self.output,
            )
            self.out.mux(packet)

    def encode(self, length):
        resampler = av.AudioResampler(
            self.output.codec_context.format,
            self.output.codec_context.layout,
            self.output.codec_context.sample_rate,
        )
        samples = 0
        for frame in self.source.decode(self.input):
            if frame.time is not None and frame.time < self.begin:
                continue
            if frame.time is not None and frame.time - self.begin >= length:
                break
            for part in resampler.resample(frame):
                part.pts, samples = samples, samples + part.samples
                self.out.mux(self.output.encode(part))
        self.out.mux(self.output.encode())
