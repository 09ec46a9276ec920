"""The prepare command: every reader, bad clips by name, and resuming to the same bytes."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax import prepare
from ivid2vid_jax.data import readers, shapes
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.data.records import split_by_origin
from ivid2vid_jax.utils.errors import UserError
from tests.support.command import run_command
from tests.video.test_video import moving_square, psnr, write


def options(text):
    """Command-line words from a string."""
    return text.split()


def run(capsys, data, output, *words):
    """(exit code, stderr, stdout) of prepare; in this process only, unless --workers is given."""
    words = words if "--workers" in words else (*words, "--workers", "1")
    return run_command(
        capsys, prepare.PrepareArgs, prepare.run, "--data", data, "--output", output, *words
    )


def command(data, output, *words):
    """The command line of prepare in a process of its own."""
    module = (sys.executable, "-m", "ivid2vid_jax.prepare")
    return [*map(str, (*module, "--data", data, "--output", output, *words))]


def write_pairs(folder, count=5, **clips):
    """Writes a CSV of `count` pairs; clips: keyword arguments of `write` by file name, as "s1"."""
    folder.mkdir()
    rows = [["src_video", "tgt_video", "prompt", "edit_type"]]
    for i in range(count):
        for name in (f"s{i}", f"t{i}"):
            write(folder / f"{name}.mp4", **{"clip": moving_square(), **clips.get(name, {})})
        rows.append([f"s{i}.mp4", f"t{i}.mp4", f"make it {i}, at once", "style"])
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "pairs.csv"


def read_triplets(folder):
    """Every triplet of a dataset by id."""
    info = json.loads((folder / "dataset_info.json").read_text())
    datasets = [open_dataset(folder, split["name"]) for split in info["splits"]]
    triplets = [dataset[i] for dataset in datasets for i in range(len(dataset))]
    return {triplet.id: triplet for triplet in triplets}


def read_shards(folder):
    """File name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.glob("triplets-*")}


# ---- readers ----


def test_a_csv_of_pairs(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", s1={"clip": 255 - moving_square()})
    code, err, out = run(capsys, data, tmp_path / "out", *options("--size 24 --frames 6"))
    assert code == 0, err
    assert "read 5 triplets: 5 written (train 4, validation 1;" in out
    assert "0 left out" in out
    assert "triplets: 100%" in err
    triplets = read_triplets(tmp_path / "out")
    assert len(triplets) == 5
    first, second = (
        next(t for t in triplets.values() if t.instruction == f"make it {i}, at once")
        for i in (0, 1)
    )
    assert first.id.startswith("s0-")
    assert first.provenance == "pairs.csv row 2: s0.mp4, t0.mp4"
    assert first.source.shape == first.edited.shape == (6, 24, 32, 3)
    assert first.fps == 10
    assert first.edit_type == "style"
    assert first.mask is None
    assert psnr(second.source, 255 - second.edited) > 30
    assert not (tmp_path / "out" / "bad.jsonl").exists()


def test_a_csv_elsewhere_with_root_and_images(tmp_path, capsys):
    write_pairs(tmp_path / "in", 1)
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (60, 30), "red").save(tmp_path / "in" / name)
    lines = (
        "\ufeffsrc_video,tgt_video,prompt,licence",
        "a.png,b.jpg,make it red,CC0-1.0",
        "s0.mp4,t0.mp4,make it blue,",
    )
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = options("--size 40 --fps 5 --codec mp4 --validation 0")
    code, err, _ = run(
        capsys, tmp_path / "list.csv", tmp_path / "out", "--root", tmp_path / "in", *words
    )
    assert code == 0, err
    image, video = map(open_dataset(tmp_path / "out").__getitem__, range(2))
    assert image.source.shape == (1, 30, 60, 3), "never enlarged"
    assert image.licence == "CC0-1.0"
    assert video.source.shape == (6, 40, 53, 3)
    assert video.fps == 5


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_json_lists(tmp_path, kind):
    common = {"src_video": "a.png", "tgt_video": "b.png", "source_caption": "a cat", "other": 3}
    rows = [common | {"prompt": f"make it {i}"} for i in (1, 2, 2)]
    path = tmp_path / f"list.{kind}"
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    path.write_text(json.dumps(rows) if kind == "json" else lines)
    items = readers.open_reader(str(path), None, readers.ClipSettings(), None).items()
    assert [item.instruction for item in items] == ["make it 1", "make it 2", "make it 2"]
    assert items[0].source_caption == "a cat"
    assert items[2].id == f"{items[1].id}-2"
    assert len({item.id for item in items}) == 3


HEADER = "src_video,tgt_video,prompt\n"
NO_TEXT = '{"src_video": "a", "tgt_video": "b", "prompt": ["c"]}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "l.csv",
            "src_video,tgt,prompt\na,b,c\n",
            "row 2 has no tgt_video (it has: src_video, tgt, prompt)",
        ),
        ("l.csv", HEADER + "a,b,make it snow, slowly\n", "row 2 has more cells than the header"),
        ("l.csv", HEADER, "lists no triplet"),
        ("l.csv", HEADER.encode() + b"a,b,\xe9\n", "not CSV in UTF-8"),
        ("l.jsonl", '{"src_video": "a"\n', "line 1 is not JSON"),
        ("l.jsonl", "3\n", "line 1 is not a JSON object"),
        ("l.jsonl", NO_TEXT, "line 1: prompt must be text"),
        ("l.json", "{}", "holds a JSON dict, not a list"),
        ("seeds.json", '[["a", 3]]', "entry 1 is not [name, [seeds]]"),
        ("l.txt", "", "is not one of these: a procedural world"),
    ],
)
def test_malformed_lists(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    data = tmp_path if name == "seeds.json" else tmp_path / name
    code, err, _ = run(capsys, data, tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_instruct_pix2pix_folders_in_both_spellings(tmp_path, capsys):
    for i, key in enumerate(("input", "caption")):
        folder = tmp_path / "in" / "shard-00" / f"{i:07d}"
        folder.mkdir(parents=True)
        prompt = {key: f"a {key}", "edit": "make it snow", "output": "a snowy one"}
        (folder / "prompt.json").write_text(json.dumps(prompt))
        for seed in (11, 12):
            for side in (0, 1):
                image = Image.new("RGB", (64, 64), (100 * side, seed, 0))
                image.save(folder / f"{seed}_{side}.jpg", quality=100)
    seeds = [["shard-00/0000000", ["11", "12"]], ["shard-00/0000001", [11]]]
    (tmp_path / "in" / "seeds.json").write_text(json.dumps(seeds))
    code, err, _ = run(capsys, tmp_path / "in", tmp_path / "out", "--size", 32)
    assert code == 0, err
    triplets = read_triplets(tmp_path / "out")
    assert sorted(triplets) == [
        "shard-00/0000000/11",
        "shard-00/0000000/12",
        "shard-00/0000001/11",
    ]
    captions = {triplet.source_caption for triplet in triplets.values()}
    assert captions == {"a input", "a caption"}
    triplet = triplets["shard-00/0000000/12"]
    assert triplet.instruction == "make it snow"
    assert triplet.edited_caption == "a snowy one"
    assert triplet.source.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(triplet.source[0, 0, 0], (0, 12, 0), atol=2)
    np.testing.assert_allclose(triplet.edited[0, 0, 0], (100, 12, 0), atol=2)


def test_shapes_in_other_processes(tmp_path, capsys):
    words = options(
        "--count 30 --size 16 --frames 2 --shard 7 --seed 3 --split eval --kinds colour remove "
        "--workers 2 --validation 0.3"
    )
    code, err, _ = run(capsys, "shapes", tmp_path / "out", *words)
    assert code == 0, err
    triplets = read_triplets(tmp_path / "out")
    assert len(triplets) == 30
    assert {triplet.edit_type for triplet in triplets.values()} == {"colour", "remove"}
    spec = shapes.sample_spec(3, 4, "eval", ("colour", "remove"), 16, 2)
    triplet = next(triplet for id, triplet in triplets.items() if id.endswith("-4"))
    np.testing.assert_array_equal(triplet.edited, shapes.triplet(spec).edited)
    assert shapes.Spec.from_json(triplet.provenance) == spec
    assert 3 <= len(open_dataset(tmp_path / "out", "validation")) <= 15


# ---- pairs that do not fit, and bad ones ----


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (
            dict(clip=moving_square(6)),
            "the source has 12 frames and the edited clip 6: more than 10% apart",
        ),
        (
            dict(clip=moving_square(12, 64, 64)),
            "the source is 64x48 and the edited clip 64x64: their shapes differ",
        ),
        (dict(rate=Fraction(5)), "the source runs at 10 frames/s and the edited clip at 5"),
        (dict(clip=moving_square(11, 38, 50)), None),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, capsys, clip, message):
    data = write_pairs(tmp_path / "in", 2, t1=clip)
    code, err, out = run(capsys, data, tmp_path / "out", "--size", 40)
    assert code == 0, err
    if message:
        assert f"left out: pairs.csv row 3: {message}" in err
        assert "1 written" in out
        assert "1 left out" in out
    else:
        triplets = read_triplets(tmp_path / "out")
        second = next(triplet for id, triplet in triplets.items() if id.startswith("s1"))
        assert second.source.shape == second.edited.shape == (11, 38, 50, 3), (
            "the smaller clip's size, the shorter one's length"
        )


def damage_clips(folder):
    """s1 is missing, t2 is cut off, s3 is no video."""
    (folder / "s1.mp4").unlink()
    (folder / "t2.mp4").write_bytes((folder / "t2.mp4").read_bytes()[:-300])
    (folder / "s3.mp4").write_text("not a video")


def test_bad_clips_are_named_and_counted(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", 6)
    damage_clips(tmp_path / "in")
    words = options("--limit-bad 3 --validation 0")
    code, err, out = run(capsys, data, tmp_path / "out", *words)
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
    code, _, _ = run(capsys, data, tmp_path / "whole", "--shard", 2)
    assert code == 0
    damage_clips(tmp_path / "in")
    output = tmp_path / "out"
    words = options("--shard 2 --limit-bad 2 --workers 2")
    code, err, out = run(capsys, data, output, *words)
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
    code, err, out = run(capsys, data, output, *words)
    assert code == 0, err
    assert "6 written" in out
    assert "0 left out" in out
    assert read_shards(output) == read_shards(tmp_path / "whole")
    assert not (output / "bad.jsonl").exists()


def test_the_limit_stops_early(tmp_path, capsys):
    rows = "".join(f"no{i}.mp4,no.mp4,make it {i}\n" for i in range(40))
    (tmp_path / "l.csv").write_text(HEADER + rows)
    words = options("--shard 4 --limit-bad 5")
    code, err, _ = run(capsys, tmp_path / "l.csv", tmp_path / "out", *words)
    assert code == 2
    assert "8 triplets cannot be read" in err, "two shards of four, and no more"
    code, err, _ = run(capsys, tmp_path / "l.csv", tmp_path / "all", "--limit-bad", 100)
    assert code == 2
    assert "none of its 40 triplets can be read" in err
    assert "left out: 20 more" in err
    assert not (tmp_path / "all" / "dataset_info.json").exists()


def test_empty_cells_are_bad_triplets(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", 2)
    data.write_text(data.read_text() + ",t1.mp4,make it so,\ns1.mp4,t1.mp4, ,\n")
    code, err, out = run(capsys, data, tmp_path / "out")
    assert code == 0, err
    assert "row 4: src_video is empty" in err
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
            command("shapes", output, *SHAPES, "--workers", 2),
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
    code, err, out = run(capsys, "shapes", output, *SHAPES, "--workers", "2")
    assert code == 0, err
    assert "300 written" in out
    rewritten = [
        name for name, stamp in before.items() if (output / name).stat().st_mtime_ns != stamp
    ]
    assert len(rewritten) <= 2, (
        "finished shards are not written again, unless the kill came before their ledger line"
    )
    run(capsys, "shapes", tmp_path / "whole", *SHAPES, "--workers", "1")
    actual, expected = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (output, tmp_path / "whole")
    )
    assert actual == expected


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


def test_killed_while_writing_the_metadata(tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"

    def kill(**_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr("tensorflow_datasets.folder_dataset.write_metadata", kill)
        assert run(capsys, "shapes", output, *SMALL)[0] == 137
    with pytest.raises(UserError, match="not finished"):
        open_dataset(output)
    assert run(capsys, "shapes", output, *SMALL)[0] == 0
    assert len(read_triplets(output)) == 20


def test_other_arguments_are_refused(tmp_path, capsys):
    output = tmp_path / "out"
    assert run(capsys, "shapes", output, *SMALL)[0] == 0
    before = read_shards(output)
    code, err, _ = run(capsys, "shapes", output, *SMALL, *options("--seed 1 --codec mp4"))
    assert code == 2
    assert "begun with other arguments: codec was 'npy' and is 'mp4'; seed was 0 and is 1" in err
    assert read_shards(output) == before
    code, _, out = run(capsys, "shapes", output, *SMALL, "--limit-bad", 7)
    assert code == 0
    assert "is finished already, train 19, validation 1" in out


def test_a_changed_list_is_noticed(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", 3)
    assert run(capsys, data, tmp_path / "out")[0] == 0
    data.write_text(data.read_text() + "s0.mp4,t1.mp4,another,\n")
    code, err, _ = run(capsys, data, tmp_path / "out")
    assert code == 2
    assert "lists other triplets now" in err
    (tmp_path / "out" / "dataset_info.json").unlink()
    code, err, out = run(capsys, data, tmp_path / "out")
    assert code == 0, err
    assert "4 written" in out, "an unfinished one follows its list"


def test_other_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    code, err, _ = run(capsys, "shapes", tmp_path, "--count", 5)
    assert code == 2
    assert "is not empty and was not made by this command" in err
    code, err, _ = run(capsys, "shapes", tmp_path / "mine.txt", "--count", 5)
    assert code == 2
    assert "cannot be made a folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- the validation split ----


def split_sizes(items, validation):
    return {split: len(part) for split, part in split_by_origin(items, validation).items()}


def test_validation_depends_on_names_only():
    items = [readers.Item(f"name-{i}", "") for i in range(2000)]
    splits = split_by_origin(items, 0.1)
    reversed_splits = split_by_origin([*items[::-1], readers.Item("more", "")], 0.1)
    names, names_again = (
        {item.id for item in part["validation"]} for part in (splits, reversed_splits)
    )
    assert names == names_again - {"more"}
    assert 150 < len(splits["validation"]) < 250
    assert len(splits["train"]) + len(splits["validation"]) == 2000
    assert split_sizes(items[:2], 1e-9) == {"train": 1, "validation": 1}
    assert split_sizes(items[:2], 0.999999999) == {"train": 1, "validation": 1}
    assert list(split_by_origin(items[:1], 0.5)) == ["train"]
    assert list(split_by_origin(items, 0)) == ["train"]


def test_instructions_for_one_clip_stay_in_one_split():
    rows = [
        readers.ListRow(f"id-{i}", "", f"clip-{i % 50}.mp4", "edited.mp4", "make it red")
        for i in range(400)
    ]
    splits = split_by_origin(rows, 0.2)
    train, validation = ({row.source for row in splits[name]} for name in ("train", "validation"))
    assert not train & validation
    assert len(train | validation) == 50
    assert 4 <= len(validation) <= 16
    one_clip = [row for row in rows if row.source == "clip-0.mp4"]
    assert list(split_by_origin(one_clip, 0.5)) == ["train"]
    pairs = [
        readers.ImagePair(f"{i // 4}/{i % 4}", "", str(i // 4), str(i % 4)) for i in range(200)
    ]
    splits = split_by_origin(pairs, 0.3)
    train, validation = ({pair.folder for pair in splits[name]} for name in ("train", "validation"))
    assert not train & validation


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
    code, err, _ = run(capsys, "shapes", tmp_path / "out", *options(words))
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
    prepare_large = command("shapes", large, "--count", 100_000, *tiny)
    process = subprocess.Popen(prepare_large, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(large.glob("*.array_record-*"))) >= 60, seconds=3600)
    process.kill()
    process.wait()
    for words in (prepare_large, command("shapes", small, "--count", 100, *tiny)):
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
