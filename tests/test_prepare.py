"""The prepare command: bad clips by name, resuming to the same bytes, wrong arguments."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.errors import UserError
from tests.data.prepared import (
    options,
    prepare_command,
    read_shards,
    read_triplets,
    run_prepare,
    write_pairs,
)

# ---- bad clips ----


def damage_clips(folder):
    """s1 is missing, t2 is cut off, s3 is no video."""
    (folder / "s1.mp4").unlink()
    (folder / "t2.mp4").write_bytes((folder / "t2.mp4").read_bytes()[:-300])
    (folder / "s3.mp4").write_text("not a video")


def test_bad_clips_are_named_and_counted(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", 6)
    damage_clips(tmp_path / "in")
    words = options("--limit-bad 3 --validation 0")
    code, err, out = run_prepare(capsys, data, tmp_path / "out", *words)
    assert code == 0, err
    assert "read 6 triplets: 3 written (train 3;" in out
    assert "3 left out" in out
    rows = [f"pairs.csv row {row}" for row in (3, 4, 5)]
    assert all(f"left out: {row}: " in err for row in rows)
    assert "s1.mp4: no such file" in err
    lines = (tmp_path / "out" / "bad.jsonl").read_text().splitlines()
    bad = [json.loads(line) for line in lines]
    assert [item["where"] for item in bad] == rows
    assert "t2.mp4" in bad[1]["reason"]
    triplets = read_triplets(tmp_path / "out")
    assert [triplet.instruction[8] for triplet in triplets.values()] == ["0", "4", "5"]


def test_beyond_the_limit_it_stops_and_goes_on_when_repaired(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", 6)
    originals = {path: path.read_bytes() for path in (tmp_path / "in").glob("*.mp4")}
    code, _, _ = run_prepare(capsys, data, tmp_path / "whole", "--shard", 2)
    assert code == 0
    damage_clips(tmp_path / "in")
    output = tmp_path / "out"
    words = options("--shard 2 --limit-bad 2 --workers 2")
    code, err, out = run_prepare(capsys, data, output, *words)
    assert code == 2
    assert "3 triplets cannot be read, more than --limit-bad 2" in err
    assert "row 3: " in err
    assert out == ""
    with pytest.raises(UserError, match="not finished"):
        open_dataset(output)
    assert len((output / "bad.jsonl").read_text().splitlines()) == 3
    assert len(read_shards(output)) >= 2
    for path, content in originals.items():
        path.write_bytes(content)
    code, err, out = run_prepare(capsys, data, output, *words)
    assert code == 0, err
    assert "6 written" in out
    assert "0 left out" in out
    assert read_shards(output) == read_shards(tmp_path / "whole")
    assert not (output / "bad.jsonl").exists()


def test_the_limit_stops_early(tmp_path, capsys):
    rows = "".join(f"no{i}.mp4,no.mp4,make it {i}\n" for i in range(40))
    (tmp_path / "l.csv").write_text("src_video,tgt_video,prompt\n" + rows)
    words = options("--shard 4 --limit-bad 5")
    code, err, _ = run_prepare(capsys, tmp_path / "l.csv", tmp_path / "out", *words)
    assert code == 2
    assert "8 triplets cannot be read" in err, "two shards of four, and no more"
    code, err, _ = run_prepare(capsys, tmp_path / "l.csv", tmp_path / "all", "--limit-bad", 100)
    assert code == 2
    assert "none of its 40 triplets can be read" in err
    assert "left out: 20 more" in err
    assert not (tmp_path / "all" / "dataset_info.json").exists()


def test_empty_cells_are_bad_triplets(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", 2)
    data.write_text(data.read_text() + ",t1.mp4,make it so,\ns1.mp4,t1.mp4, ,\n")
    code, err, out = run_prepare(capsys, data, tmp_path / "out")
    assert code == 0, err
    assert "row 4: the path of the source clip is empty" in err
    assert "row 5: the instruction is empty" in err
    assert "2 left out" in out


# ---- continuing a run ----

SHAPES = options("--size 64 --frames 8 --shard 10 --count 300")
SMALL = options("--count 20 --size 16 --frames 1")


def wait_for(condition, seconds=60):
    """Fails if the condition does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def is_alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (OSError, IndexError):
        return False


def start_and_stop(output, send):
    """Runs prepare with two workers, stops it by signal after three shards; returns its stderr.

    The workers are gone when this returns.
    """
    log = output.with_suffix(".log")  # a pipe would stay open while a worker lives
    with log.open("w") as file:
        process = subprocess.Popen(
            prepare_command("shapes", output, *SHAPES, "--workers", 2),
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )
    wait_for(lambda: len(list(output.glob("triplets-*"))) >= 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    send(process)
    process.wait()
    assert len(children) >= 2
    try:
        wait_for(lambda: not any(is_alive(int(pid)) for pid in children))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, log.read_text()


def test_killed_and_run_again_gives_the_same_bytes(tmp_path, capsys):
    output = tmp_path / "out"
    code, _ = start_and_stop(output, lambda process: process.kill())
    assert code == -signal.SIGKILL
    before = {name: (output / name).stat().st_mtime_ns for name in read_shards(output)}
    assert 3 <= len(before) < 30, "killed in the middle"
    with pytest.raises(UserError, match="not finished: run the same prepare again"):
        open_dataset(output)
    leftover = output / ".triplets-train.array_record-00029-of-00030.1"
    leftover.write_bytes(b"left by the killed run")
    with (output / "shards.jsonl").open("a") as file:
        file.write('{"split": "train", "fi')  # a line that was cut off
    code, err, out = run_prepare(capsys, "shapes", output, *SHAPES, "--workers", "2")
    assert code == 0, err
    assert "300 written" in out
    rewritten = [
        name for name, stamp in before.items() if (output / name).stat().st_mtime_ns != stamp
    ]
    assert len(rewritten) <= 2, (
        "finished shards are not written again, unless the kill came before their ledger line"
    )
    run_prepare(capsys, "shapes", tmp_path / "whole", *SHAPES, "--workers", "1")
    actual, expected = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (output, tmp_path / "whole")
    )
    assert actual == expected


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_keeps_finished_shards(tmp_path):
    def send(process):  # as a terminal does, to the workers too
        os.killpg(process.pid, signal.SIGINT)

    output = tmp_path / "out"
    code, err = start_and_stop(output, send)
    assert code == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert 3 <= len(read_shards(output)) < 30
    ledger = [
        json.loads(line) for line in (output / "shards.jsonl").read_text().split("\n") if line
    ]
    assert {entry["file"] for entry in ledger} <= set(read_shards(output))


@pytest.mark.parametrize("delay", [0.0, 0.4, 1.2])
def test_ctrl_c_while_the_workers_start_prints_one_line(tmp_path, delay):
    """A worker that is still importing would print a traceback."""
    process = subprocess.Popen(
        prepare_command("shapes", tmp_path / "out", *SHAPES, "--workers", 3),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: len(children.read_text().split()) >= 2)  # the first keeps semaphores
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    lines = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130
    lines = [line for line in lines if line and not line.startswith("triplets:")]
    assert len(lines) == 1 and lines[0].startswith("interrupted; the finished shards in"), lines


def test_killed_while_writing_the_metadata(tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"

    def kill(**_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr("tensorflow_datasets.folder_dataset.write_metadata", kill)
        assert run_prepare(capsys, "shapes", output, *SMALL)[0] == 137
    with pytest.raises(UserError, match="not finished"):
        open_dataset(output)
    assert run_prepare(capsys, "shapes", output, *SMALL)[0] == 0
    assert len(read_triplets(output)) == 20


def test_other_arguments_are_refused(tmp_path, capsys):
    output = tmp_path / "out"
    assert run_prepare(capsys, "shapes", output, *SMALL)[0] == 0
    before = read_shards(output)
    code, err, _ = run_prepare(capsys, "shapes", output, *SMALL, *options("--seed 1 --codec mp4"))
    assert code == 2
    assert "begun with other arguments: codec was 'npy' and is 'mp4'; seed was 0 and is 1" in err
    assert read_shards(output) == before
    code, _, out = run_prepare(capsys, "shapes", output, *SMALL, "--limit-bad", 7)
    assert code == 0
    assert "is finished already, train 19, validation 1" in out


def test_a_changed_list_is_noticed(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", 3)
    assert run_prepare(capsys, data, tmp_path / "out")[0] == 0
    data.write_text(data.read_text() + "s0.mp4,t1.mp4,another,\n")
    code, err, _ = run_prepare(capsys, data, tmp_path / "out")
    assert code == 2
    assert "lists other triplets now" in err
    (tmp_path / "out" / "dataset_info.json").unlink()
    code, err, out = run_prepare(capsys, data, tmp_path / "out")
    assert code == 0, err
    assert "4 written" in out, "an unfinished one follows its list"


def test_other_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    code, err, _ = run_prepare(capsys, "shapes", tmp_path, "--count", 5)
    assert code == 2
    assert "is not empty and was not made by this command" in err
    code, err, _ = run_prepare(capsys, "shapes", tmp_path / "mine.txt", "--count", 5)
    assert code == 2
    assert "cannot be made a folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- mistakes ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--codec gif", "codec 'gif' is none of npy, mp4"),
        ("--size 4", "size 4 must be between 8"),
        ("--frames 0", "frames 0 must be"),
        ("--validation 1", "validation 1.0 must be"),
        ("--validation nan", "validation nan must be"),
        ("--shard 0", "shard 0 must be"),
        ("--workers 0", "workers 0 must be"),
        ("--count 0", "count 0 must be"),
        ("--limit-bad -1", "limit_bad -1 must be"),
        ("--fps 8", "its own 8 frames/s"),
        ("--kinds dance", "edit kinds ['dance'] are unknown"),
        ("--split test", "split 'test' is none of"),
        ("--size 20", "multiple of 8"),
    ],
)
def test_bad_arguments(tmp_path, capsys, words, message):
    code, err, _ = run_prepare(capsys, "shapes", tmp_path / "out", *options(words))
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


# ---- many triplets ----

# Prints the seconds until the first batch; imports what takes seconds and is independent of the
# data first.
START = """
import sys, time
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.loader import Loader
import tensorflow_datasets, grain
config = LoaderConfig(batch=16, frames=2, size=16)
start = time.time()
with Loader(config, (sys.argv[1],), "pixels", None, seed=0) as loader:
    next(loader)
    print(time.time() - start)
"""


def seconds_to_first_batch(folder):
    """The best of three processes."""
    words = [sys.executable, "-c", START, str(folder)]
    runs = [subprocess.run(words, check=True, capture_output=True, text=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


@pytest.mark.slow
def test_a_hundred_thousand_tiny_triplets(tmp_path):
    """Killed half-way and run again.

    The loader starts as fast as on a hundred, and its first batches come from all over the set.
    """
    large, small = tmp_path / "large", tmp_path / "small"
    tiny = options("--frames 2 --size 16")
    prepare_large = prepare_command("shapes", large, "--count", 100_000, *tiny)
    process = subprocess.Popen(prepare_large, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(large.glob("*.array_record-*"))) >= 60, seconds=3600)
    process.kill()
    process.wait()
    for words in (prepare_large, prepare_command("shapes", small, "--count", 100, *tiny)):
        subprocess.run(words, check=True, capture_output=True)
    counts = {split: len(open_dataset(large, split)) for split in ("train", "validation")}
    assert sum(counts.values()) == 100_000
    assert 0.015 < counts["validation"] / 100_000 < 0.025

    small_time, large_time = seconds_to_first_batch(small), seconds_to_first_batch(large)
    print(f"first batch: {small_time:.3f} s for 100 triplets, {large_time:.3f} s for 100,000")
    assert large_time < small_time + 0.5

    config = LoaderConfig(batch=64, frames=2, size=16)
    with Loader(config, (str(large),), "pixels", None, seed=0) as loader:
        order = loader.streams[0].order
        indices = np.array([order[i] for i in range(4096)])
    assert len(set(indices)) == 4096
    assert abs(np.corrcoef(indices, np.arange(4096))[0, 1]) < 0.05
    assert (np.histogram(indices, bins=10, range=(0, counts["train"]))[0] > 300).all()
