"""What is read and written agrees with the ffmpeg command line, over a matrix of file kinds.

    python -m pytest -m slow -n 0 tests/video/test_against_ffmpeg.py

Needs Debian's `ffmpeg` package. The matrix is drawn by a seed and covers pairs of properties.
"""

import dataclasses
import itertools
import json
import random
import re
import shutil
import subprocess

import numpy as np
import pytest

from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.video.write import plan_sound, write_clip
from tests.support.media import beeps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command line"),
]

WIDTH, HEIGHT, RATE, SECONDS = 160, 120, 10, 2
PIXELS = {  # encoder -> pixel formats
    "libx264": ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le"),
    "libx265": ("yuv420p", "yuv420p10le"),
    "mpeg4": ("yuv420p",),
    "mpeg2video": ("yuv420p", "yuv422p"),
    "mpeg1video": ("yuv420p",),
    "libvpx": ("yuv420p",),
    "libvpx-vp9": ("yuv420p", "yuv444p", "yuv422p10le"),
    "mjpeg": ("yuvj420p", "yuvj422p"),
    "ffv1": ("yuv420p", "yuv444p16le", "gbrp"),
    "prores_ks": ("yuv422p10le",),
    "qtrle": ("rgb24", "argb"),
    "gif": ("pal8",),
    "apng": ("rgb24", "rgba"),
    "libwebp_anim": ("yuv420p", "bgra"),
}
CONTAINERS = {  # suffix -> video encoders, sound encoders
    "mp4": (("libx264", "libx265", "mpeg4"), ("aac", "libmp3lame", "ac3", "flac", "libopus")),
    "mov": (("libx264", "prores_ks", "qtrle", "mjpeg"), ("aac", "pcm_s16le", "alac")),
    "mkv": (
        ("libx264", "ffv1", "libvpx-vp9", "mpeg2video"),
        ("aac", "flac", "libopus", "libvorbis", "pcm_s24le", "ac3"),
    ),
    "webm": (("libvpx", "libvpx-vp9"), ("libopus", "libvorbis")),
    "avi": (("mjpeg", "mpeg4"), ("pcm_s16le", "libmp3lame", "ac3")),
    "ts": (("libx264", "mpeg2video"), ("aac", "mp2", "ac3")),
    "mpg": (("mpeg2video", "mpeg1video"), ("mp2",)),
    "gif": (("gif",), ()),
    "apng": (("apng",), ()),
    "webp": (("libwebp_anim",), ()),
}
ORIENTATIONS = ("none", "90", "180", "270", "hflip", "vflip")
ASPECTS = ("1/1", "64/45", "3/4")
COLOURS = ("601 tv", "709 tv", "709 pc", "untagged")
LAYOUTS = ("mono", "stereo", "5.1")
DELAYS = (0.0, 0.3)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Properties of one file."""

    container: str
    codec: str
    pixels: str
    orientation: str
    aspect: str
    interlaced: bool
    colours: str
    sound: str
    layout: str
    delay: float

    def __str__(self):
        return "-".join(str(value) for value in dataclasses.astuple(self)).replace("/", ":")


def draw(rng: random.Random) -> Kind:
    """A kind whose properties can go together."""
    container = rng.choice(list(CONTAINERS))
    codecs, sounds = CONTAINERS[container]
    codec = rng.choice(codecs)
    pixels = rng.choice(PIXELS[codec])
    animation = container in ("gif", "apng", "webp")
    planar = pixels.startswith("yuv")
    can_turn = container in ("mp4", "mov")
    sound = rng.choice([*sounds, "none"]) if sounds else "none"
    layout = rng.choice(LAYOUTS)
    if sound in ("libmp3lame", "mp2") and layout == "5.1":
        layout = "stereo"
    return Kind(
        container,
        codec,
        pixels,
        rng.choice(ORIENTATIONS) if can_turn else "none",
        "1/1" if animation or container == "avi" else rng.choice(ASPECTS),
        codec == "mpeg2video" and pixels == "yuv420p" and rng.random() < 0.5,
        rng.choice(COLOURS) if planar and not animation and codec != "mjpeg" else "untagged",
        sound,
        layout if sound != "none" else "mono",
        rng.choice(DELAYS) if sound != "none" and container in ("mp4", "mkv", "ts") else 0.0,
    )


def matrix(seed: int, least: int = 60) -> list[Kind]:
    """Kinds that cover every pair of two properties that 5,000 draws hold, at least `least`."""
    rng = random.Random(seed)
    kinds = sorted({draw(rng) for _ in range(5000)}, key=str)
    rng.shuffle(kinds)

    def pairs(kind):
        return set(itertools.combinations(enumerate(dataclasses.astuple(kind)), 2))

    missing = set().union(*map(pairs, kinds))
    chosen = []
    for kind in kinds:
        gain = len(pairs(kind) & missing)
        if gain >= (4 if len(chosen) < least else 9):
            chosen.append(kind)
            missing -= pairs(kind)
        if len(chosen) >= 2 * least:
            break
    return chosen[: max(least, 60)]


def ffmpeg(*words) -> bytes:
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def make(kind: Kind, folder):
    """The file: a moving test pattern, and two beeps at 0.5 and 1.5 s."""
    path, plain = folder / f"clip.{kind.container}", folder / f"plain.{kind.container}"
    picture = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={RATE}:duration={SECONDS}"
    filters = ["gblur=sigma=2", "setsar=" + kind.aspect]  # no detail that codecs lose
    matrix_name, _, span = kind.colours.partition(" ")
    tags = []
    if span:
        name = {"601": "smpte170m", "709": "bt709"}[matrix_name]
        filters.append(f"scale=out_color_matrix=bt{matrix_name}:out_range={span}")
        tags = ["-colorspace", name, "-color_primaries", name, "-color_trc", name]
        tags += ["-color_range", span]
    filters.append(f"format={kind.pixels}" if kind.pixels != "pal8" else "format=rgb24")
    if kind.interlaced:
        filters.append("setfield=tff")
    words = ["-f", "lavfi", "-i", picture]
    if kind.sound != "none":
        channels = {"mono": 1, "stereo": 2, "5.1": 6}[kind.layout]
        tone = "0.5*sin(2*PI*1000*t)*(between(t\\,0.5\\,0.6)+between(t\\,1.5\\,1.6))"
        sound = "|".join([tone] * channels)
        words += ["-itsoffset", kind.delay, "-f", "lavfi"]
        words += ["-i", f"aevalsrc='{sound}':s=48000:d={SECONDS}:c={kind.layout}"]
        words += ["-c:a", kind.sound, *(["-strict", "-2"] if kind.sound == "flac" else [])]
    words += ["-vf", ",".join(filters), "-c:v", kind.codec, *tags, *quality(kind)]
    if kind.container in ("gif", "apng"):
        words += ["-plays" if kind.container == "apng" else "-loop", 0]
    ffmpeg(*words, "-t", SECONDS, plain)
    if kind.orientation == "none":
        plain.rename(path)
    else:
        turn = {
            "hflip": ["-display_hflip"],
            "vflip": ["-display_vflip"],
        }.get(kind.orientation, ["-display_rotation:v:0", kind.orientation])
        try:
            ffmpeg(*turn, "-i", plain, "-c", "copy", "-strict", "-2", path)
        except subprocess.CalledProcessError:  # ffmpeg before 6.0 cannot write mirrors
            turn = ["-metadata:s:v:0", "rotate=90", "-strict", "-2"]
            ffmpeg("-i", plain, "-c", "copy", *turn, path)
    return path


def quality(kind: Kind) -> list[str]:
    flags = {
        "libx264": ["-crf", "4", "-preset", "ultrafast"],
        "libx265": ["-crf", "4", "-preset", "ultrafast", "-x265-params", "log-level=error"],
        "libvpx": ["-crf", "4", "-b:v", "4M", "-deadline", "realtime"],
        "libvpx-vp9": ["-crf", "10", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "8"],
        "libwebp_anim": ["-lossless", "1", "-loop", "0"],
        "mjpeg": ["-q:v", "2"],
        "mpeg4": ["-q:v", "1"],
        "mpeg2video": ["-q:v", "1", *(["-flags", "+ildct+ilme"] if kind.interlaced else [])],
        "mpeg1video": ["-q:v", "1"],
    }
    rate = ["-r", "25"] if kind.codec in ("mpeg2video", "mpeg1video") else []
    return flags.get(kind.codec, []) + rate


def reference(path, size) -> tuple[np.ndarray, list[float]]:
    """Frames as ffmpeg shows them, at a size (height, width), and their times."""
    height, width = size
    flags = "bicubic+accurate_rnd+full_chroma_int"
    filters = (
        f"bwdif=mode=send_frame:deint=interlaced,scale={width}:{height}:flags={flags},format=rgba"
    )
    command = ["ffmpeg", "-nostdin", "-v", "info", "-sws_flags", flags, "-i", str(path)]
    command += ["-map", "0:v:0", "-vf", f"{filters},showinfo", "-vsync", "passthrough"]
    command += ["-f", "rawvideo", "-"]
    done = subprocess.run(command, check=True, capture_output=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 4)
    alpha = frames[..., 3:].astype(float) / 255
    frames = frames[..., :3] * alpha + 255 * (1 - alpha)
    text = done.stderr.decode(errors="replace")
    return frames, [float(time) for time in re.findall(r"pts_time:\s*([-\d.]+)", text)]


def shown_size(path) -> tuple[int, int]:
    """(height, width) of a player's window: square pixels, turned."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_streams", "-of", "json"]
    stream = json.loads(subprocess.run([*command, str(path)], capture_output=True).stdout)
    stream = stream["streams"][0]
    width, height = stream["width"], stream["height"]
    aspect = stream.get("sample_aspect_ratio", "1:1").replace("N/A", "1:1").split(":")
    ratio = float(aspect[0]) / float(aspect[1]) if float(aspect[1]) and float(aspect[0]) else 1.0
    if ratio > 1:
        width = round(width * ratio)
    elif ratio < 1:
        height = round(height / ratio)
    turn = next(
        (int(data["rotation"]) for data in stream.get("side_data_list", []) if "rotation" in data),
        0,
    )
    return (width, height) if turn % 180 else (height, width)


@pytest.mark.parametrize("kind", matrix(0), ids=str)
def test_as_ffmpeg(tmp_path, kind):
    compare(tmp_path, kind)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_matrices(tmp_path, seed):
    for number, kind in enumerate(matrix(seed)):
        folder = tmp_path / str(number)
        folder.mkdir()
        compare(folder, kind)


def halved(pixels: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels: what 4:2:0 keeps of the colours of a test pattern."""
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    blocks = pixels[:height, :width].astype(float).reshape(height // 2, 2, width // 2, 2, 3)
    return blocks.mean((1, 3))


def compare(folder, kind: Kind) -> None:
    """Frames, times, colours and sound onsets: as read, and of what is written."""
    path = make(kind, folder)
    clip = open_clip(path)
    frames = list(clip.frames())
    times = [float(frame.time) for frame in frames]
    if kind.container != "webp":  # ffmpeg does not read animated webp
        size = shown_size(path)
        expected, expected_times = reference(path, size)
        assert (clip.height, clip.width) == size, kind
        assert len(frames) == len(expected), kind
        steps = np.array(expected_times) - expected_times[0]
        np.testing.assert_allclose(np.array(times) - times[0], steps, atol=0.002)
        if kind.container not in ("apng", "gif"):  # ffmpeg's start is that of the mapped streams
            assert times[0] == pytest.approx(expected_times[0], abs=0.03)
        errors = [
            np.abs(frame.pixels - pixels).mean()
            for frame, pixels in zip(frames, expected, strict=True)
        ]
        assert max(errors) <= 4, (kind, max(errors))
    for suffix in ("mp4", "webm"):
        output = folder / f"output.{suffix}"
        sound = plan_sound(output, clip)
        write_clip(output, [f.pixels for f in frames], [f.time for f in frames], clip.rate, sound)
        written, _ = reference(output, (clip.height + clip.height % 2, clip.width + clip.width % 2))
        errors = [
            np.abs(halved(frame.pixels) - halved(pixels[: clip.height, : clip.width])).mean()
            for frame, pixels in zip(frames, written, strict=True)
        ]
        assert max(errors) <= 4, (kind, suffix, max(errors))
        if kind.sound != "none":
            shift = kind.delay - times[0]
            assert beeps(output) == pytest.approx([0.5 + shift, 1.5 + shift], abs=0.03), kind
