"""Sizes of frames and lengths of clips: reading in a given size, limits, memory."""

import struct
import subprocess
import sys
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.frame_size import FrameLimit
from ivid2vid_jax.video.read import open_clip
from tests.support.media import MEDIA, write_blank_video


@pytest.mark.parametrize(
    "name",
    [
        *("c_601_tagged_sd.mp4", "c_709_full_444.mp4", "c_709_tagged_hd.mp4", "c_hlg10.mp4"),
        *("selfie.mp4", "interlaced.mpg", "anamorphic_pal.mp4", "alpha_vp9.webm", "alpha.gif"),
        *("alpha_qtrle.mov", "alpha_frames", "size_change.h264", "exif6.jpg", "odd.gif"),
    ],
)
def test_frames_in_a_size(name):
    """They agree with Pillow's resampling of the frames in their own size."""
    clip, size = open_clip(MEDIA / name), (50, 90)
    frames, fitted = list(islice(clip.frames(), 4)), list(islice(clip.frames(size), 4))
    assert [frame.time for frame in fitted] == [frame.time for frame in frames]
    for frame, actual in zip(frames, fitted, strict=True):
        image = Image.fromarray(frame.pixels).resize(size[::-1], Image.Resampling.LANCZOS)
        assert actual.pixels.shape == (*size, 3)
        assert np.abs(actual.pixels - np.asarray(image, int)).mean() < 4


def test_a_portrait_clip_in_a_size(tmp_path):
    """The matrix of the track header turns clockwise by 90 degrees, as phones write it."""
    data = bytearray((MEDIA / "_v.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2
    data[matrix : matrix + 20] = struct.pack(">5i", 0, 1 << 16, 0, -1 << 16, 0)
    (tmp_path / "portrait.mp4").write_bytes(data)
    clip, plain = open_clip(tmp_path / "portrait.mp4"), open_clip(MEDIA / "_v.mp4")
    assert (clip.height, clip.width) == (160, 120)
    for size in (None, (96, 64)):
        turned = next(clip.frames(size)).pixels
        expected = np.rot90(next(plain.frames(size and size[::-1])).pixels, -1)
        assert np.abs(turned - expected.astype(int)).mean() < 1


READ = """
import gc, resource, sys
from ivid2vid_jax.video.read import open_clip

gc.disable()
for count, _ in enumerate(open_clip(sys.argv[1]).frames((48, 64))):
    if count in (20, 199):
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_frames_are_freed_at_once(tmp_path):
    """Not by the garbage collector, which would leave hundreds of them; 200 have 184 MiB."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height = 960, 640
        for _ in range(200):
            output.mux(stream.encode(av.VideoFrame(960, 640, "yuv420p")))
        output.mux(stream.encode())
    command = [sys.executable, "-c", READ, str(path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    early, late = map(int, done.stdout.split())
    assert late < early + 20


def test_a_frame_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path):
    for side in (9000, 16_384):
        Image.new("1", (side, side)).save(tmp_path / "large.png")
        with pytest.raises(UserError, match=r"large.png.*above the limit of 67,108,864 pixels"):
            open_clip(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("_v.mp4", {}, 20),
        ("joined.ts", {}, 20),
        ("alpha.gif", {}, 5),
        ("seq_unpadded", {}, 12),
        ("flash_flac.mkv", dict(start=2, end=4), 50),
        ("flash.mp4", dict(fps=5, end=2), 10),
    ],
)
def test_more_frames_than_the_limit(name, options, least):
    """`least` is the number of frames."""
    assert len(list(open_clip(MEDIA / name, limit=FrameLimit(least), **options).frames())) == least
    with pytest.raises(UserError, match=f"{name}: has more than {least - 1} frames, the.*lower"):
        list(open_clip(MEDIA / name, limit=FrameLimit(least - 1), **options).frames())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_long_video_is_refused_before_it_is_decoded(tmp_path, monkeypatch, suffix):
    path = write_blank_video(tmp_path / f"long{suffix}", 300)
    monkeypatch.setattr("ivid2vid_jax.video.read.container_frames", lambda *_: pytest.fail("reads"))
    with pytest.raises(UserError, match=r"long.*: has more than 299 frames, the limit; cut it"):
        open_clip(path, limit=FrameLimit(299))
