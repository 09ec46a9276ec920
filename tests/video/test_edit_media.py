"""Whole edits, by the embedded editor, of files that people have; ffprobe and ffmpeg judge them."""

import json
import re
import shutil
import subprocess

import av
import pytest

from ivid2vid_jax import edit
from ivid2vid_jax.data.clip_pairs import ClipSettings, read_pair
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video import sound
from tests.support.command import run_command
from tests.support.media import MEDIA, beeps, write_blank_video

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="needs the ffmpeg command line"
)


def run_edit(capsys, video, output, *options):
    """Edits a clip in two steps; returns (exit code, stderr)."""
    paths = ["--video", video, "--output", output, "--instruction", "make it blue"]
    words = [*paths, "--steps", "2", "--size", "32", *options]
    return run_command(capsys, edit.EditArgs, edit.run, *words)[:2]


def ffmpeg(*words):
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", *map(str, words)]
    subprocess.run(command, check=True)


def streams(path, count="packets"):
    """What ffprobe says of the first stream of each kind, with its frames or packets counted."""
    command = ["ffprobe", "-v", "error", f"-count_{count}", "-show_streams", "-of", "json", path]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    return {stream["codec_type"]: stream for stream in reversed(listed)}


def frames_of(path) -> int:
    """Frames that ffmpeg decodes from a file's picture."""
    command = ["ffmpeg", "-nostdin", "-i", path, "-map", "0:v:0", "-vsync", "passthrough"]
    log = subprocess.run([*command, "-f", "null", "-"], check=True, capture_output=True).stderr
    return int(re.findall(rb"frame=\s*(\d+)", log)[-1])


@needs_ffmpeg
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output", "codecs", "onsets"),
    [
        ("flash_opus_mono.webm", "out.mp4", ("h264", "aac"), [1]),
        ("flash_pcm.avi", "out.mp4", ("h264", "aac"), [1]),
        ("late_flac.mkv", "out.webm", ("vp9", "opus"), [1]),
        ("flash_clock3600.ts", "out.mp4", ("h264", "aac"), [1]),
    ],
)
def test_sound_is_kept_and_planned_once(
    tmp_path, capsys, monkeypatch, name, output, codecs, onsets
):
    plan, plans = sound.is_contiguous, []
    monkeypatch.setattr(sound, "is_contiguous", lambda *a: plans.append(1) or plan(*a))
    path = tmp_path / output
    code, stderr = run_edit(capsys, MEDIA / name, path, "--end", 2, "--fps", 5)
    assert code == 0, stderr
    by_type = streams(path)
    assert (by_type["video"]["codec_name"], by_type["audio"]["codec_name"]) == codecs
    assert frames_of(path) == 10
    assert float(by_type["audio"].get("duration") or 2) == pytest.approx(2, abs=0.1)
    assert beeps(path) == pytest.approx(onsets, abs=0.03)
    assert len(plans) <= 1


@needs_ffmpeg
@pytest.mark.slow
def test_a_lossless_trim(tmp_path, capsys):
    """ffmpeg's `-ss -c copy` leaves an edit list; the clip is what a player shows of it."""
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=5", "-c:v", "libx264"),
        *("-g", "20", "-bf", "2", "-pix_fmt", "yuv420p", tmp_path / "whole.mp4"),
    )
    trim = tmp_path / "trim.mp4"
    ffmpeg("-ss", "2.5", "-i", tmp_path / "whole.mp4", "-c", "copy", trim)
    shown = frames_of(trim)
    assert int(streams(trim)["video"]["nb_read_packets"]) > shown  # some are hidden by the list
    code, stderr = run_edit(capsys, trim, tmp_path / "out.mp4")
    assert code == 0, stderr
    assert frames_of(tmp_path / "out.mp4") == shown


@needs_ffmpeg
@pytest.mark.slow
def test_a_song_with_cover_art_has_no_clip_and_a_clip_with_cover_art_is_edited(tmp_path, capsys):
    picture = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=5:duration=1"]
    song = ["-f", "lavfi", "-i", "sine=duration=1"]
    ffmpeg(*picture, "-frames:v", 1, tmp_path / "cover.jpg")
    cover = ["-i", tmp_path / "cover.jpg"]
    ffmpeg(*song, *cover, "-map", 0, "-map", 1, "-c:v", "copy", tmp_path / "song.mp3")
    ffmpeg(
        *(*song, *cover, "-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic"),
        tmp_path / "song.mp4",
    )
    for name, fault in (("song.mp3", "is not a video"), ("song.mp4", "holds no video stream")):
        code, stderr = run_edit(capsys, tmp_path / name, tmp_path / "out.mp4")
        assert code == 2 and stderr.count("\n") == 1, stderr
        assert f"{name}: {fault}" in stderr
    ffmpeg(
        *(*cover, *picture, *song, "-map", 0, "-map", 1, "-map", 2, "-c:v:0", "copy"),
        *("-c:v:1", "libx264", "-disposition:v:0", "attached_pic", tmp_path / "clip.mp4"),
    )
    code, stderr = run_edit(capsys, tmp_path / "clip.mp4", tmp_path / "out.mp4")
    assert code == 0, stderr
    assert frames_of(tmp_path / "out.mp4") == 5 and "audio" in streams(tmp_path / "out.mp4")


@needs_ffmpeg
@pytest.mark.slow
def test_joined_streams_of_two_sizes_are_compared(tmp_path, capsys):
    joined = tmp_path / "joined.ts"
    for size in ("64x48", "48x64"):
        ffmpeg(
            *("-f", "lavfi", "-i", f"testsrc2=size={size}:rate=10:duration=1"),
            *("-c:v", "libx264", "-pix_fmt", "yuv420p", tmp_path / "part.ts"),
        )
        with joined.open("ab") as file:
            file.write((tmp_path / "part.ts").read_bytes())
    shown = frames_of(joined)
    code, stderr = run_edit(capsys, joined, tmp_path / "out.mp4", "--compare")
    assert code == 0, stderr
    for name, width in (("out.mp4", 64), ("out_compare.mp4", 128)):
        video = streams(tmp_path / name)["video"]
        assert (video["width"], video["height"], frames_of(tmp_path / name)) == (width, 48, shown)


@pytest.mark.slow
def test_a_comparison_that_fails_is_one_line(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise av.error.ExternalError(1, "Generic error in an external library")

    monkeypatch.setattr("ivid2vid_jax.video.compare.write_clip", fail)
    options = ["--compare", "--end", "0.3"]
    code, stderr = run_edit(capsys, MEDIA / "_v.mp4", tmp_path / "out.mp4", *options)
    assert code == 2 and "out.mp4: is written, but its comparison" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr and (tmp_path / "out.mp4").is_file()


def test_a_clip_of_too_many_frames(tmp_path, capsys):
    path = write_blank_video(tmp_path / "long.mp4", 10_001)
    code, stderr = run_edit(capsys, path, tmp_path / "out.mp4")
    assert (
        code == 2 and "long.mp4: has more than 10,000 frames, the limit; take a part (--s" in stderr
    )
    assert "raise --max-frames" in stderr and stderr.count("\n") == 1
    with pytest.raises(UserError, match=r"has more than 10,000 frames, the limit.*\(--frames"):
        read_pair(path, path, ClipSettings())
    assert len(read_pair(path, path, ClipSettings(frames=4))[0]) == 4
    options = ["--max-frames", "10001", "--model", "/none"]  # refused after the clip is opened
    assert "no such model" in run_edit(capsys, path, tmp_path / "out.mp4", *options)[1]
