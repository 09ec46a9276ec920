"""The command: real clips in, whole clips out; bad input in, one line and exit code 2 out."""

import json
import shlex
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax import assets, edit
from ivid2vid_jax.video.read import open_clip
from tests.support.command import run_command
from tests.video.test_video import bad_file, packets_of, read, write

QUICK = ["--steps", "2", "--size", "32"]


def run(capsys, *words):
    return run_command(capsys, edit.EditArgs, edit.run, *words)


def words(tiny, video, output, *more):
    return [
        "--model",
        tiny,
        "--video",
        video,
        "--output",
        output,
        *QUICK,
        "--instruction",
        "make it snow",
        *more,
    ]


def test_a_real_clip_keeps_count_rate_size_and_sound(tiny, clip, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    code, err, _ = run(capsys, *words(tiny, clip, out))
    assert code == 0, err
    (before, frames_before, times_before), (after, frames_after, times_after) = (
        read(clip),
        read(out),
    )
    assert frames_after.shape == frames_before.shape
    assert after.rate == before.rate
    np.testing.assert_allclose(
        [float(t) for t in times_after],
        [float(t - times_before[0]) for t in times_before],
        atol=1e-6,
    )
    assert after.has_audio == before.has_audio
    if before.has_audio:
        assert (
            packets_of(out) == packets_of(clip)[: len(packets_of(out))]
            and len(packets_of(out)) > 100
        )
    assert (frames_after != frames_before).mean() > 0.5
    record = json.loads((tmp_path / "out.mp4.json").read_text())
    assert (
        record["frames"] == len(frames_before)
        and record["settings"]["seed"] == 0
        and record["settings"]["steps"] == 2
    )
    assert set(record["weights"]) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


def test_an_embedded_clip_is_edited_by_name_and_where_none_is_given(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--model", tiny, "--instruction", "make the circle blue", *QUICK]
    code, err, out = run(capsys, *words)
    assert code == 0 and "wrote edited.mp4" in out, err
    shown = read(tmp_path / "edited.mp4")[1]
    assert shown.shape == (8, 64, 64, 3) and (shown != read(assets.clip(None))[1]).any()
    for video, output in (("star", "named"), (assets.clips()["star"], "path")):
        assert run(capsys, *words, "--video", video, "--output", output)[0] == 0
    named, path = (sorted((tmp_path / folder).iterdir()) for folder in ("named", "path"))
    assert len(named) == 8 and [file.read_bytes() for file in named] == [
        file.read_bytes() for file in path
    ]


def test_a_profile_is_a_trace_of_the_sampling(tiny, tmp_path, capsys):
    code, err, _ = run(
        capsys,
        "--model",
        tiny,
        "--video",
        "star",
        "--instruction",
        "make it grey",
        "--output",
        tmp_path / "out.gif",
        *QUICK,
        "--profile",
        tmp_path / "trace",
    )
    assert code == 0 and [
        file.stat().st_size > 1000 for file in (tmp_path / "trace").rglob("*.xplane.pb")
    ] == [True], err


def test_the_record_repeats_the_edit_in_another_process(tiny, car, tmp_path, capsys):
    """Frame folders are compared: the pixels repeat bit for bit, x264's choices for the same pixels do not always."""
    options = ["--end", "1.7", "--sampler", "euler_ancestral"]
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    code, err, _ = run(capsys, *words(tiny, car, first, *options, "--seed", "3"))
    assert code == 0, err
    command = json.loads((tmp_path / "first.json").read_text())["command"].replace(
        str(first), str(again)
    )
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, capture_output=True)
    assert read(first)[1].shape == (17, 480, 480, 3)
    np.testing.assert_array_equal(read(first)[1], read(again)[1])
    run(capsys, *words(tiny, car, other, *options, "--seed", "4"))
    assert (read(first)[1] != read(other)[1]).mean() > 0.3


def test_compare_range_rate_and_progress(tiny, car, tmp_path, capsys):
    out = tmp_path / "out.webm"
    code, err, said = run(
        capsys, *words(tiny, car, out, "--start", "1", "--end", "3", "--fps", "5", "--compare")
    )
    assert code == 0, err
    assert "encoding: 10it" in err and "sampling: 100%" in err and "writing: 100%" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.webm",
        "out.webm.json",
        "out_compare.webm",
        "out_sheet.png",
    ]
    assert all(name in said for name in ("out.webm", "out_compare.webm", "out_sheet.png"))
    assert read(out)[1].shape == (10, 480, 480, 3) and read(tmp_path / "out_compare.webm")[
        1
    ].shape == (10, 480, 960, 3)
    assert open_clip(out).rate == 5


@pytest.mark.parametrize("kind", ["gif", "webp", "folder"])
def test_other_kinds_of_clip(tiny, tmp_path, capsys, kind):
    name = {"gif": "in.gif", "webp": "in.webp", "folder": "in"}[kind]
    source = write(tmp_path / name)
    out = tmp_path / name.replace("in", "out")
    code, err, _ = run(capsys, *words(tiny, source, out))
    assert code == 0, err
    assert read(out)[1].shape == (12, 48, 64, 3)
    if kind != "folder":
        assert [float(t) for t in read(out)[2]] == pytest.approx([i / 10 for i in range(12)])


def test_a_still_image(tiny, tmp_path, capsys):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "in.png")
    code, err, _ = run(capsys, *words(tiny, tmp_path / "in.png", tmp_path / "out.png"))
    assert code == 0, err
    assert Image.open(tmp_path / "out.png").size == (50, 40)


def test_sound_that_is_lost_is_said(tiny, skiing, tmp_path, capsys):
    code, err, _ = run(
        capsys, *words(tiny, skiing, tmp_path / "out.gif", "--end", "0.2", "--fps", "10")
    )
    assert code == 0 and ".gif holds no sound" in err


def test_a_long_instruction_is_cut_aloud(tiny, tmp_path, capsys, caplog):
    source = write(tmp_path / "in.mp4")
    code, err, _ = run(
        capsys, *words(tiny, source, tmp_path / "out.mp4"), "--instruction", "snow " * 2000
    )
    assert code == 0, err
    assert "is cut at 77; what is not read" in caplog.text


def refused(capsys, tmp_path, *arguments):
    """The one line of a refused command; nothing must have been written."""
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    code, err, out = run(capsys, *arguments)
    assert code == 2, err
    lines = [
        line
        for line in err.splitlines()
        if line.strip() and not line.startswith(("encoding:", "sampling:", "writing:"))
    ]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert out == "" and {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
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
def test_bad_clips(tiny, tmp_path, capsys, kind, message):
    assert message in refused(
        capsys, tmp_path, *words(tiny, bad_file(tmp_path, kind), tmp_path / "out.mp4")
    )


def test_a_clip_that_breaks_off_late(tiny, car, tmp_path, capsys):
    """The index is whole and the pictures end: found while decoding, when the model is already at work."""
    source = tmp_path / "in.mp4"
    faststart(car, source)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    line = refused(capsys, tmp_path, *words(tiny, tmp_path / "in.mp4", tmp_path / "out.mp4"))
    assert "in.mp4" in line and ("breaks off" in line or "cut off" in line)


def faststart(path, target):
    """The file with its index in front, as a download has it that stops midway."""
    with (
        av.open(str(path)) as source,
        av.open(str(target), "w", container_options={"movflags": "+faststart"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)


def test_one_frame_videos_are_sent_to_stills(tiny, tmp_path, capsys):
    source = write(tmp_path / "in.mp4", np.zeros((1, 48, 64, 3), np.uint8), rate=Fraction(10))
    assert "holds one frame" in refused(
        capsys, tmp_path, *words(tiny, source, tmp_path / "out.mp4")
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--instruction", ""], "the instruction is empty"),
        (["--instruction", "  \n"], "the instruction is empty"),
        (["--size", "0"], "size 0 must be between"),
        (["--size", "3"], "size 3 is too small"),
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
        (["--output", "/no/out.mp4"], "does not exist"),
        (["--output", "out.xyz"], "cannot write .xyz"),
        (["--start", "9"], "holds no frame between"),
        (["--fps", "0"], "fps 0"),
        (["--end", "nan"], "end nan"),
    ],
)
def test_bad_arguments(tiny, tmp_path, capsys, more, message):
    source = write(tmp_path / "in.mp4")
    assert message in refused(capsys, tmp_path, *words(tiny, source, tmp_path / "out.mp4"), *more)


def test_the_input_is_never_overwritten(tiny, tmp_path, capsys):
    source = write(tmp_path / "in.mp4")
    assert "is the input clip" in refused(capsys, tmp_path, *words(tiny, source, source))
    assert "is a still image" in refused(
        capsys, tmp_path, *words(tiny, source, tmp_path / "out.png")
    )


def test_unknown_and_missing_arguments(tiny, tmp_path, capsys):
    code, err, _ = run(capsys, *words(tiny, "in.mp4", "out.mp4"), "--stepz", "3")
    assert code == 2 and "--stepz" in err and "--steps" in err
    code, err, _ = run(capsys, "--video", "in.mp4")
    assert code == 2 and "--instruction" in err


PEAK = "import resource, sys; from ivid2vid_jax import commands, edit; commands.main(edit.EditArgs, edit.run); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def test_memory_does_not_grow_with_length(tiny, car, tmp_path):
    """Peak memory of an 80-frame edit within 15% of a 32-frame one."""
    peaks = []
    for end, name in [("3.2", "short.mp4"), ("8.0", "long.mp4")]:
        argv = [
            sys.executable,
            "-c",
            PEAK,
            *map(str, words(tiny, car, tmp_path / name, "--end", end)),
        ]
        peaks.append(
            int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[-1])
        )
    assert len(read(tmp_path / "short.mp4")[1]) == 32 and len(read(tmp_path / "long.mp4")[1]) == 80
    assert peaks[1] <= 1.15 * peaks[0], peaks
