"""The edit command: edits of real clips; one-line errors with exit code 2 for invalid input."""

import json
import shlex
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax import assets, edit
from ivid2vid_jax.video.read import open_clip
from tests.support.command import run_command
from tests.support.media import faststart
from tests.video.test_video import bad_file, packets_of, read, write

QUICK = ["--steps", "2", "--size", "16"]


def run(capsys, *arguments):
    """Returns (exit code, stderr, stdout)."""
    return run_command(capsys, edit.EditArgs, edit.run, *arguments)


def edit_arguments(model, video, output, *more):
    paths = ["--model", model, "--video", video, "--output", output]
    return [*paths, *QUICK, "--instruction", "make it snow", *more]


@pytest.mark.parametrize(
    "clip", [pytest.param("car", marks=pytest.mark.slow), "skiing"], indirect=True
)
def test_a_real_clip_keeps_length_rate_size_and_sound(tiny, clip, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    code, stderr, _ = run(capsys, *edit_arguments(tiny, clip, out))
    assert code == 0, stderr
    source, source_frames, source_times = read(clip)
    edited, edited_frames, edited_times = read(out)
    assert edited_frames.shape == source_frames.shape
    assert edited.rate == source.rate
    expected_times = [float(t - source_times[0]) for t in source_times]
    np.testing.assert_allclose([float(t) for t in edited_times], expected_times, atol=1e-6)
    assert edited.has_audio == source.has_audio
    if source.has_audio:
        packets = packets_of(out)
        assert packets == packets_of(clip)[: len(packets)] and len(packets) > 100
    assert (edited_frames != source_frames).mean() > 0.5
    record = json.loads((tmp_path / "out.mp4.json").read_text())
    assert record["frames"] == len(source_frames)
    assert record["settings"]["seed"] == 0 and record["settings"]["steps"] == 2
    assert set(record["weights"]) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


def test_an_embedded_clip_is_edited_by_name_and_by_default(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", tiny, "--instruction", "make the circle blue", *QUICK]
    code, stderr, stdout = run(capsys, *arguments)
    assert code == 0 and "wrote edited.mp4" in stdout, stderr
    edited = read(tmp_path / "edited.mp4")[1]
    assert edited.shape == (8, 64, 64, 3) and (edited != read(assets.clip(None))[1]).any()
    for video, output in (("star", "by_name"), (assets.clips()["star"], "by_path")):
        assert run(capsys, *arguments, "--video", video, "--output", output)[0] == 0
    by_name, by_path = (
        [file.read_bytes() for file in sorted((tmp_path / folder).iterdir())]
        for folder in ("by_name", "by_path")
    )
    assert len(by_name) == 8 and by_name == by_path


def test_an_existing_output_is_kept_unless_it_may_be_overwritten(tiny, tmp_path, capsys):
    out = tmp_path / "new" / "out.gif"
    arguments = edit_arguments(tiny, "star", out)
    assert run(capsys, *arguments)[0] == 0
    first = out.read_bytes()
    code, stderr, stdout = run(capsys, *arguments, "--seed", "1")
    assert code == 0 and "out.gif exists; writing" in stderr and "out-2.gif" in stdout
    assert out.read_bytes() == first != (out.parent / "out-2.gif").read_bytes()
    assert run(capsys, *arguments, "--seed", "1", "--overwrite")[0] == 0
    assert out.read_bytes() == (out.parent / "out-2.gif").read_bytes()
    names = ["out-2.gif", "out-2.gif.json", "out.gif", "out.gif.json"]
    assert sorted(path.name for path in out.parent.iterdir()) == names


def test_several_edits_in_one_command(tiny, tmp_path, capsys):
    """Three clips, one of them broken, times two seeds: the others are edited all the same."""
    good, broken = write(tmp_path / "good.gif"), tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    arguments = ["--model", tiny, *QUICK, "--instruction", "make it snow", "--seed", "0", "1"]
    videos = ["--video", "star", good, broken]
    code, stderr, _ = run(capsys, *arguments, *videos, "--output", tmp_path / "edits")
    assert code == 2 and "2 of 6 edits failed" in stderr, stderr
    assert stderr.count("error: ") == 3 and "[4/4]" in stderr
    assert stderr.count("broken.mp4") == 2, "each of its errors names the clip once"
    names = [f"{clip}_make-it-snow_{seed}.mp4" for clip in ("good", "star") for seed in (0, 1)]
    written = sorted(path.name for path in (tmp_path / "edits").glob("*.mp4"))
    assert written == names
    record = json.loads((tmp_path / "edits" / "star_make-it-snow_1.mp4.json").read_text())
    assert record["settings"]["seed"] == 1 and record["edit"]["instruction"] == "make it snow"


def test_a_preview_is_one_frame_beside_the_source(tiny, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    code, _, stdout = run(capsys, *edit_arguments(tiny, "star", out, "--preview"))
    assert code == 0 and stdout == f"wrote {tmp_path / 'out_preview.png'}\n"
    pair = np.asarray(Image.open(tmp_path / "out_preview.png"))
    source = next(open_clip(assets.clips()["star"]).frames()).pixels
    np.testing.assert_array_equal(pair[:, :64], source)
    assert pair.shape == (64, 128, 3) and (pair[:, 64:] != source).any()
    assert [path.name for path in tmp_path.iterdir()] == ["out_preview.png"]
    first = (tmp_path / "out_preview.png").read_bytes()
    again = edit_arguments(tiny, "star", out, "--preview", "--instruction", "make it warm")
    code, stderr, stdout = run(capsys, *again)
    assert code == 0 and stdout == f"wrote {tmp_path / 'out_preview-2.png'}\n"
    assert "out_preview.png exists; writing" in stderr
    assert (tmp_path / "out_preview.png").read_bytes() == first
    assert run(capsys, *again, "--overwrite")[0] == 0
    assert (tmp_path / "out_preview.png").read_bytes() != first
    assert len(list(tmp_path.iterdir())) == 2


def test_a_long_edit_names_the_ways_to_a_shorter_one(capsys):
    with edit.SamplingProgress("sampling") as progress:
        progress(1, 100_000)
        progress.first_done -= 2  # seconds ago
        progress(2, 100_000)
    message = capsys.readouterr().err
    assert "takes about 55 h" in message and all(
        option in message for option in ("--steps", "--size", "--end", "--preview")
    )


@pytest.mark.slow
def test_a_profile_traces_the_sampling(tiny, tmp_path, capsys):
    arguments = edit_arguments(tiny, "star", tmp_path / "out.gif", "--profile", tmp_path / "trace")
    code, stderr, _ = run(capsys, *arguments)
    traces = list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert code == 0 and [file.stat().st_size > 1000 for file in traces] == [True], stderr


@pytest.mark.slow
def test_the_record_repeats_the_edit_in_another_process(tiny, car, tmp_path, capsys):
    """Compares folders of frames: x264 does not always encode equal pixels to equal bytes."""
    options = ["--end", "1.7", "--sampler", "euler_ancestral"]
    first, repeated, other = (tmp_path / name for name in ("first", "repeated", "other"))
    code, stderr, _ = run(capsys, *edit_arguments(tiny, car, first, *options, "--seed", "3"))
    assert code == 0, stderr
    command = json.loads((tmp_path / "first.json").read_text())["command"]
    arguments = shlex.split(command.replace(str(first), str(repeated)))[1:]
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    assert read(first)[1].shape == (17, 480, 480, 3)
    np.testing.assert_array_equal(read(first)[1], read(repeated)[1])
    run(capsys, *edit_arguments(tiny, car, other, *options, "--seed", "4"))
    assert (read(first)[1] != read(other)[1]).mean() > 0.3


def test_comparison_range_frame_rate_and_progress(tiny, car, tmp_path, capsys):
    out = tmp_path / "out.webm"
    options = ["--start", "1", "--end", "3", "--fps", "5", "--compare"]
    code, stderr, stdout = run(capsys, *edit_arguments(tiny, car, out, *options))
    assert code == 0, stderr
    for progress in ("encoding: 10it", "sampling: 100%", "writing: 100%"):
        assert progress in stderr
    names = ["out.webm", "out.webm.json", "out_compare.webm", "out_sheet.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(name in stdout for name in names)
    assert read(out)[1].shape == (10, 480, 480, 3)
    assert read(tmp_path / "out_compare.webm")[1].shape == (10, 480, 960, 3)
    assert open_clip(out).rate == 5


@pytest.mark.parametrize("kind", ["gif", "webp", "folder"])
def test_other_formats(tiny, tmp_path, capsys, kind):
    name = {"gif": "in.gif", "webp": "in.webp", "folder": "in"}[kind]
    source = write(tmp_path / name)
    out = tmp_path / name.replace("in", "out")
    code, stderr, _ = run(capsys, *edit_arguments(tiny, source, out))
    assert code == 0, stderr
    assert read(out)[1].shape == (12, 48, 64, 3)
    if kind != "folder":
        assert [float(t) for t in read(out)[2]] == pytest.approx([i / 10 for i in range(12)])


def test_a_still_image(tiny, tmp_path, capsys):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "in.png")
    arguments = edit_arguments(tiny, tmp_path / "in.png", tmp_path / "out.png")
    code, stderr, _ = run(capsys, *arguments)
    assert code == 0, stderr
    assert Image.open(tmp_path / "out.png").size == (50, 40)


def test_dropped_sound_is_reported(tiny, skiing, tmp_path, capsys):
    options = ["--end", "0.2", "--fps", "10"]
    code, stderr, _ = run(capsys, *edit_arguments(tiny, skiing, tmp_path / "out.gif", *options))
    assert code == 0 and ".gif holds no sound" in stderr


def test_a_long_instruction_is_truncated_with_a_warning(tiny, tmp_path, capsys, caplog):
    source = write(tmp_path / "in.mp4")
    arguments = edit_arguments(tiny, source, tmp_path / "out.mp4")
    code, stderr, _ = run(capsys, *arguments, "--instruction", "snow " * 2000)
    assert code == 0, stderr
    assert "77" in caplog.text and "snow" in caplog.text


def error_line(capsys, folder, *arguments):
    """The one-line error of a command that must not write anything to the folder."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, stderr, stdout = run(capsys, *arguments)
    assert code == 2, stderr
    lines = [
        line
        for line in stderr.splitlines()
        if line.strip() and not line.startswith(("encoding:", "sampling:", "writing:"))
    ]
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    assert stdout == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return lines[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("empty", "is empty (0 bytes)"),
        ("text", "is not a video"),
        ("audio", "holds no video stream"),
        ("truncated", "cut off"),
    ],
)
def test_invalid_clips(tiny, tmp_path, capsys, kind, message):
    arguments = edit_arguments(tiny, bad_file(tmp_path, kind), tmp_path / "out.mp4")
    assert message in error_line(capsys, tmp_path, *arguments)


def test_a_clip_that_is_truncated_late(tiny, car, tmp_path, capsys):
    """The index is complete and frames are missing: the error appears while the model runs."""
    source = tmp_path / "in.mp4"
    faststart(car, source)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    line = error_line(capsys, tmp_path, *edit_arguments(tiny, source, tmp_path / "out.mp4"))
    assert "in.mp4" in line and ("breaks off" in line or "cut off" in line)


def test_a_video_with_one_frame_is_an_error(tiny, tmp_path, capsys):
    source = write(tmp_path / "in.mp4", np.zeros((1, 48, 64, 3), np.uint8), rate=Fraction(10))
    arguments = edit_arguments(tiny, source, tmp_path / "out.mp4")
    assert "has one frame" in error_line(capsys, tmp_path, *arguments)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--instruction", ""], "the instruction is empty"),
        (["--instruction", "  \n"], "the instruction is empty"),
        (["--size", "0"], "size 0 must be between"),
        (["--size", "1"], "size 1 is too small"),
        (["--text-scale", "nan"], "text_scale nan must be"),
        (["--video-scale", "inf"], "video_scale inf must be"),
        (["--steps", "0"], "steps 0"),
        (["--steps", "2000"], "steps 2000 must be between 1 and 1000"),
        (["--sampler", "plms"], "'plms' is unknown"),
        (["--model", "/nowhere"], "no such model folder"),
        (["--model", "/tmp"], "has no model_index.json"),
        (["--seed", "-1"], "seed -1"),
        (["--dtype", "int8"], "dtype 'int8'"),
        (["--output", "/proc/out.mp4"], "cannot be written"),
        (["--output", "/proc/no/out.mp4"], "cannot be written"),
        (["--output", "out.xyz"], "cannot write .xyz"),
        (["--start", "9"], "holds no frame between"),
        (["--fps", "0"], "fps 0"),
        (["--end", "nan"], "end nan"),
    ],
)
def test_invalid_options(tiny, tmp_path, capsys, more, message):
    source = write(tmp_path / "in.mp4")
    arguments = edit_arguments(tiny, source, tmp_path / "out.mp4", *more)
    assert message in error_line(capsys, tmp_path, *arguments)


def test_a_note_on_the_output_comes_after_all_errors(tiny, tmp_path, capsys):
    (tmp_path / "out.mp4").touch()
    arguments = edit_arguments(tiny, "star", tmp_path / "out.mp4")
    for wrong in (["--steps", "0"], ["--model", "/nowhere"]):
        assert "exists" not in error_line(capsys, tmp_path, *arguments, *wrong)


def test_the_input_is_never_overwritten(tiny, tmp_path, capsys):
    source = write(tmp_path / "in.mp4")
    arguments = edit_arguments(tiny, source, source)
    assert "is the input clip" in error_line(capsys, tmp_path, *arguments)
    arguments = edit_arguments(tiny, source, tmp_path / "out.png")
    assert "is a still image" in error_line(capsys, tmp_path, *arguments)


def test_unknown_and_missing_options(tiny, tmp_path, capsys):
    code, stderr, _ = run(capsys, *edit_arguments(tiny, "in.mp4", "out.mp4"), "--stepz", "3")
    assert code == 2 and "--stepz" in stderr and "--steps" in stderr
    code, stderr, _ = run(capsys, "--video", "in.mp4")
    assert code == 2 and "--instruction" in stderr


# Runs the command and prints its peak memory.
PEAK_MEMORY = """
import resource
from ivid2vid_jax import edit
from ivid2vid_jax.utils.cli import main

main(edit.EditArgs, edit.run)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tiny, car, tmp_path):
    """Peak memory of an edit of 80 frames is within 15% of that of 32 frames."""
    peaks = []
    for end, name in [("3.2", "short.mp4"), ("8.0", "long.mp4")]:
        arguments = map(str, edit_arguments(tiny, car, tmp_path / name, "--end", end))
        command = [sys.executable, "-c", PEAK_MEMORY, *arguments]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(process.stdout.split()[-1]))
    assert len(read(tmp_path / "short.mp4")[1]) == 32 and len(read(tmp_path / "long.mp4")[1]) == 80
    assert peaks[1] <= 1.15 * peaks[0], peaks
