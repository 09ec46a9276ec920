"""Faults while a clip is written: the frames survive, nothing half-written carries the name."""

import errno
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video import write
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.video.rescue import write_clip_safely
from tests.support.media import MEDIA

RNG = np.random.default_rng(0)
FRAMES = list(RNG.integers(0, 256, (8, 32, 48, 3), np.uint8))
TIMES = [Fraction(i, 8) for i in range(8)]


def stored(folder):
    return [frame.pixels for frame in open_clip(folder).frames()]


def broken_encoder(monkeypatch, after, error):
    """The conversion before the encoder fails from the frame `after` on."""
    calls, convert = [], write.to_yuv420

    def fail(pixels):
        calls.append(1)
        if len(calls) > after:
            raise error
        return convert(pixels)

    monkeypatch.setattr(write, "to_yuv420", fail)


@pytest.mark.parametrize(
    "error", [ValueError("encoder"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_encoder_that_fails_leaves_the_frames(tmp_path, monkeypatch, error):
    broken_encoder(monkeypatch, 5, error)
    with pytest.raises(UserError, match=r"out.mp4.*frames are in .*out-frames"):
        write_clip_safely(tmp_path / "out.mp4", FRAMES, TIMES, Fraction(8))
    assert [path.name for path in tmp_path.iterdir()] == ["out-frames"]
    np.testing.assert_array_equal(stored(tmp_path / "out-frames"), FRAMES)


def test_sound_that_fails_costs_the_sound(tmp_path, monkeypatch):
    def fail(self, length):
        raise ValueError("no such layout")

    monkeypatch.setattr(write.SoundTrack, "write", fail)
    sound = write.plan_sound(tmp_path / "out.mp4", open_clip(MEDIA / "flash.mp4"))
    with pytest.raises(UserError, match=r"without its sound.*no such layout"):
        write_clip_safely(tmp_path / "out.mp4", FRAMES, TIMES, Fraction(8), sound)
    clip = open_clip(tmp_path / "out.mp4")
    assert len(list(clip.frames())) == 8 and not clip.has_audio


def test_a_folder_that_is_gone(tmp_path, monkeypatch):
    """The frames go to the working folder."""
    target, working = tmp_path / "gone" / "out.mp4", tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    with pytest.raises(UserError, match=r"frames are in .*working/out-frames"):
        write_clip_safely(target, FRAMES, TIMES, Fraction(8))
    np.testing.assert_array_equal(stored(working / "out-frames"), FRAMES)


def test_frames_of_an_earlier_rescue_stay(tmp_path):
    (tmp_path / "a").mkdir()
    assert write.unused_path(tmp_path / "a") == tmp_path / "a"  # an empty folder
    (tmp_path / "a" / "0.png").touch()
    (tmp_path / "b.x.mp4").touch()
    assert write.unused_path(tmp_path / "a") == tmp_path / "a-2"
    assert write.unused_path(tmp_path / "b.x.mp4") == tmp_path / "b.x-2.mp4"


SCRIPT = """
import signal, sys, time
from fractions import Fraction
import numpy as np
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
from ivid2vid_jax.video.rescue import write_clip_safely

class Frames:
    def __iter__(self):
        for i in range(8):
            print("frame", i, flush=True)
            time.sleep(0.3)
            yield np.full((32, 48, 3), 20 * i, np.uint8)

write_clip_safely(Path(sys.argv[1]), Frames(), [Fraction(i, 8) for i in range(8)], Fraction(8))
print("not reached", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_file(tmp_path, number):
    target = tmp_path / "out.mp4"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    while "frame 2" not in process.stdout.readline():
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert "not reached" not in output and process.returncode != 0
    assert len(list(open_clip(target).frames())) == 8


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which only root may do")
def test_a_full_disk(tmp_path, monkeypatch):
    """A real one: a tmpfs of 256 KiB. The frames go to the working folder."""
    disk, working = tmp_path / "disk", tmp_path / "working"
    disk.mkdir()
    working.mkdir()
    monkeypatch.chdir(working)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    try:
        frames = list(RNG.integers(0, 256, (8, 480, 640, 3), np.uint8))
        with pytest.raises(UserError, match=r"frames are in .*working/out-frames"):
            write_clip_safely(disk / "out.mp4", frames, TIMES, Fraction(8))
        assert not list(disk.iterdir())
        np.testing.assert_array_equal(stored(working / "out-frames"), frames)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
