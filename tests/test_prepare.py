"""Others' triplets through the command: every reader, bad clips by name, resuming after a kill to the same bytes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

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


def run(capsys, data, output, *words):
    """By default without other processes."""
    words = words if "--workers" in words else (*words, "--workers", "1")
    return run_command(
        capsys, prepare.PrepareArgs, prepare.run, "--data", data, "--output", output, *words
    )


def pairs(folder, count=5, **clips):
    """A CSV of that many pairs; clips: keyword arguments of a pair's clips by file name, as "s1"."""
    folder.mkdir()
    rows = [["src_video", "tgt_video", "prompt", "edit_type"]]
    for i in range(count):
        for name in (f"s{i}", f"t{i}"):
            write(folder / f"{name}.mp4", **{"clip": moving_square(), **clips.get(name, {})})
        rows.append([f"s{i}.mp4", f"t{i}.mp4", f"make it {i}, at once", "style"])
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "pairs.csv"


def all_of(folder):
    """Every triplet of the dataset by id."""
    info = json.loads((folder / "dataset_info.json").read_text())
    opened = [open_dataset(folder, split["name"]) for split in info["splits"]]
    return {
        each.id: each
        for triplets in opened
        for each in map(triplets.__getitem__, range(len(triplets)))
    }


def shards_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.array_record-*")}


# ---- readers ----


def test_a_csv_of_pairs(tmp_path, capsys):
    data = pairs(tmp_path / "in", s1={"clip": 255 - moving_square()})
    code, err, out = run(capsys, data, tmp_path / "out", "--size", 24, "--frames", 6)
    assert code == 0, err
    assert (
        "read 5 triplets: 5 written (train 4, validation 1;" in out
        and "0 left out" in out
        and "triplets: 100%" in err
    )
    found = all_of(tmp_path / "out")
    first = next(each for each in found.values() if each.instruction == "make it 0, at once")
    assert (
        len(found) == 5
        and first.id.startswith("s0-")
        and first.provenance == "pairs.csv row 2: s0.mp4, t0.mp4"
    )
    assert (
        first.source.shape == first.edited.shape == (6, 24, 32, 3)
        and first.fps == 10
        and first.edit_type == "style"
        and first.mask is None
    )
    second = next(each for each in found.values() if each.instruction == "make it 1, at once")
    assert psnr(second.source, 255 - second.edited) > 30
    assert not (tmp_path / "out" / "bad.jsonl").exists()


def test_a_csv_elsewhere_with_root_and_images(tmp_path, capsys):
    pairs(tmp_path / "in", 1)
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (60, 30), "red").save(tmp_path / "in" / name)
    rows = "\ufeffsrc_video,tgt_video,prompt,licence\na.png,b.jpg,make it red,CC0-1.0\ns0.mp4,t0.mp4,make it blue,\n"
    (tmp_path / "list.csv").write_text(rows, encoding="utf-8")
    words = (
        "--root",
        tmp_path / "in",
        "--size",
        40,
        "--fps",
        5,
        "--codec",
        "mp4",
        "--validation",
        0,
    )
    code, err, _ = run(capsys, tmp_path / "list.csv", tmp_path / "out", *words)
    assert code == 0, err
    image, video = map(open_dataset(tmp_path / "out").__getitem__, range(2))
    assert image.source.shape == (1, 30, 60, 3) and image.licence == "CC0-1.0", "never enlarged"
    assert video.source.shape == (6, 40, 53, 3) and video.fps == 5


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_json_lists(tmp_path, kind):
    rows = [
        {
            "src_video": "a.png",
            "tgt_video": "b.png",
            "prompt": f"make it {i}",
            "source_caption": "a cat",
            "other": 3,
        }
        for i in (1, 2, 2)
    ]
    path = tmp_path / f"list.{kind}"
    path.write_text(
        json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)) + "\n\n"
    )
    items = readers.open_reader(str(path), None, readers.ClipSettings(), None).items()
    assert [item.instruction for item in items] == [
        "make it 1",
        "make it 2",
        "make it 2",
    ] and items[0].source_caption == "a cat"
    assert items[2].id == f"{items[1].id}-2" and len({item.id for item in items}) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "l.csv",
            "src_video,tgt,prompt\na,b,c\n",
            "row 2 has no tgt_video (it has: src_video, tgt, prompt)",
        ),
        (
            "l.csv",
            "src_video,tgt_video,prompt\na,b,make it snow, slowly\n",
            "row 2 has more cells than the header",
        ),
        ("l.csv", "src_video,tgt_video,prompt\n", "lists no triplet"),
        ("l.csv", b"src_video,tgt_video,prompt\na,b,\xe9\n", "not CSV in UTF-8"),
        ("l.jsonl", '{"src_video": "a"\n', "line 1 is not JSON"),
        ("l.jsonl", "3\n", "line 1 is not a JSON object"),
        (
            "l.jsonl",
            '{"src_video": "a", "tgt_video": "b", "prompt": ["c"]}\n',
            "line 1: prompt must be text",
        ),
        ("l.json", "{}", "holds a JSON dict, not a list"),
        ("seeds.json", '[["a", 3]]', "entry 1 is not [name, [seeds]]"),
        ("l.txt", "", "is not one of these: a procedural world"),
    ],
)
def test_malformed_lists(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    code, err, _ = run(
        capsys, tmp_path if name == "seeds.json" else tmp_path / name, tmp_path / "out"
    )
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_instruct_pix2pix_folders_in_both_spellings(tmp_path, capsys):
    for i, word in enumerate(("input", "caption")):
        folder = tmp_path / "in" / "shard-00" / f"{i:07d}"
        folder.mkdir(parents=True)
        (folder / "prompt.json").write_text(
            json.dumps({word: f"a {word}", "edit": "make it snow", "output": "a snowy one"})
        )
        for seed in (11, 12):
            for side in (0, 1):
                Image.new("RGB", (64, 64), (100 * side, seed, 0)).save(
                    folder / f"{seed}_{side}.jpg", quality=100
                )
    (tmp_path / "in" / "seeds.json").write_text(
        json.dumps([["shard-00/0000000", ["11", "12"]], ["shard-00/0000001", [11]]])
    )
    code, err, _ = run(capsys, tmp_path / "in", tmp_path / "out", "--size", 32)
    assert code == 0, err
    found = all_of(tmp_path / "out")
    assert sorted(found) == ["shard-00/0000000/11", "shard-00/0000000/12", "shard-00/0000001/11"]
    assert {each.source_caption for each in found.values()} == {"a input", "a caption"}
    one = found["shard-00/0000000/12"]
    assert (
        one.instruction == "make it snow"
        and one.edited_caption == "a snowy one"
        and one.source.shape == (1, 32, 32, 3)
    )
    np.testing.assert_allclose(one.source[0, 0, 0], (0, 12, 0), atol=2)
    np.testing.assert_allclose(one.edited[0, 0, 0], (100, 12, 0), atol=2)


def test_shapes_in_other_processes(tmp_path, capsys):
    words = (
        "--count",
        30,
        "--size",
        16,
        "--frames",
        2,
        "--shard",
        7,
        "--seed",
        3,
        "--split",
        "eval",
        "--kinds",
        "colour",
        "remove",
    )
    code, err, out = run(
        capsys, "shapes", tmp_path / "out", *words, "--workers", 2, "--validation", 0.3
    )
    assert code == 0, err
    found = all_of(tmp_path / "out")
    assert len(found) == 30 and {each.edit_type for each in found.values()} == {"colour", "remove"}
    spec = shapes.sample_spec(3, 4, "eval", ("colour", "remove"), 16, 2)
    same = next(each for key, each in found.items() if key.endswith("-4"))
    np.testing.assert_array_equal(same.edited, shapes.triplet(spec).edited)
    assert shapes.Spec.from_json(same.provenance) == spec
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
    data = pairs(tmp_path / "in", 2, t1=clip)
    code, err, out = run(capsys, data, tmp_path / "out", "--size", 40)
    assert code == 0, err
    if message:
        assert (
            f"left out: pairs.csv row 3: {message}" in err
            and "1 written" in out
            and "1 left out" in out
        )
    else:
        other = next(each for each in all_of(tmp_path / "out").values() if each.id.startswith("s1"))
        assert other.source.shape == other.edited.shape == (11, 38, 50, 3), (
            "the smaller clip's size, the shorter one's length"
        )


def break_some(folder):
    """s1 is missing, t2 is cut off, s3 is no video."""
    (folder / "s1.mp4").unlink()
    (folder / "t2.mp4").write_bytes((folder / "t2.mp4").read_bytes()[:-300])
    (folder / "s3.mp4").write_text("not a video")


def test_bad_clips_are_named_and_counted(tmp_path, capsys):
    data = pairs(tmp_path / "in", 6)
    break_some(tmp_path / "in")
    code, err, out = run(capsys, data, tmp_path / "out", "--limit-bad", 3, "--validation", 0)
    assert code == 0, err
    assert "read 6 triplets: 3 written (train 3;" in out and "3 left out" in out
    assert (
        all(f"left out: pairs.csv row {row}: " in err for row in (3, 4, 5))
        and "s1.mp4: no such file" in err
    )
    listed = [
        json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()
    ]
    assert [each["where"] for each in listed] == [
        f"pairs.csv row {row}" for row in (3, 4, 5)
    ] and "t2.mp4" in listed[1]["reason"]
    assert [each.instruction[8] for each in all_of(tmp_path / "out").values()] == ["0", "4", "5"]


def test_beyond_the_limit_it_stops_and_goes_on_when_mended(tmp_path, capsys):
    data = pairs(tmp_path / "in", 6)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "in").glob("*.mp4")}
    code, _, _ = run(capsys, data, tmp_path / "whole", "--shard", 2)
    assert code == 0
    break_some(tmp_path / "in")
    words = (data, tmp_path / "out", "--shard", 2, "--limit-bad", 2, "--workers", 2)
    code, err, out = run(capsys, *words)
    assert (
        code == 2
        and "3 triplets cannot be read, more than --limit-bad 2" in err
        and "row 3: " in err
        and out == ""
    )
    with pytest.raises(UserError, match="not finished"):
        open_dataset(tmp_path / "out")
    assert (
        len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 3
        and len(shards_of(tmp_path / "out")) >= 2
    )
    for name in ("s1.mp4", "t2.mp4", "s3.mp4"):
        (tmp_path / "in" / name).write_bytes(kept[name])
    code, err, out = run(capsys, *words)
    assert code == 0 and "6 written" in out and "0 left out" in out, err
    assert (
        shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
        and not (tmp_path / "out" / "bad.jsonl").exists()
    )


def test_the_limit_stops_early(tmp_path, capsys):
    rows = "".join(f"no{i}.mp4,no.mp4,make it {i}\n" for i in range(40))
    (tmp_path / "l.csv").write_text("src_video,tgt_video,prompt\n" + rows)
    code, err, _ = run(capsys, tmp_path / "l.csv", tmp_path / "out", "--shard", 4, "--limit-bad", 5)
    assert code == 2 and "8 triplets cannot be read" in err, "two shards of four, and no more"
    code, err, _ = run(capsys, tmp_path / "l.csv", tmp_path / "all", "--limit-bad", 100)
    assert code == 2 and "none of its 40 triplets can be read" in err and "left out: 20 more" in err
    assert not (tmp_path / "all" / "dataset_info.json").exists()


def test_empty_cells_are_bad_triplets(tmp_path, capsys):
    data = pairs(tmp_path / "in", 2)
    data.write_text(data.read_text() + ",t1.mp4,make it so,\ns1.mp4,t1.mp4, ,\n")
    code, err, out = run(capsys, data, tmp_path / "out")
    assert (
        code == 0
        and "row 4: src_video is empty" in err
        and "row 5: the instruction is empty" in err
        and "2 left out" in out
    )


# ---- going on ----

SHAPES = ["--size", "64", "--frames", "8", "--shard", "10", "--count", "300"]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def alive(pid):
    try:
        os.kill(pid, 0)
        return open(f"/proc/{pid}/stat").read().split(") ")[1][0] != "Z"
    except (OSError, IndexError):
        return False


def test_killed_and_run_again_gives_the_same_bytes(tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "ivid2vid_jax.prepare",
        "--data",
        "shapes",
        "--output",
        str(out),
        *SHAPES,
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(out.glob("triplets-*"))) >= 3)
    children = [
        int(pid) for pid in open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    wait_for(lambda: not any(map(alive, children)))
    made = {name: (out / name).stat().st_mtime_ns for name in shards_of(out)}
    assert 3 <= len(made) < 30, "killed in the middle"
    with pytest.raises(UserError, match="not finished: run the same prepare again"):
        open_dataset(out)
    (out / ".triplets-train.array_record-00029-of-00030.1").write_bytes(b"left by the killed run")
    with open(out / "shards.jsonl", "a") as file:
        file.write('{"split": "train", "fi')  # a line torn off
    code, err, said = run(capsys, "shapes", out, *SHAPES, "--workers", "2")
    assert code == 0 and "300 written" in said, err
    again = {name for name, stamp in made.items() if (out / name).stat().st_mtime_ns != stamp}
    assert len(again) <= 2, (
        "whole shards are not made again, but for those whose line in the ledger the kill prevented"
    )
    run(capsys, "shapes", tmp_path / "whole", *SHAPES, "--workers", "1")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_killed_while_describing(tmp_path, capsys, monkeypatch):
    out, words = tmp_path / "out", ("--count", 20, "--size", 16, "--frames", 1)

    def killed(**_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr("tensorflow_datasets.folder_dataset.write_metadata", killed)
        assert run(capsys, "shapes", out, *words)[0] == 137
    with pytest.raises(UserError, match="not finished"):
        open_dataset(out)
    assert run(capsys, "shapes", out, *words)[0] == 0 and len(all_of(out)) == 20


def test_other_arguments_are_refused(tmp_path, capsys):
    words = ("--count", 20, "--size", 16, "--frames", 1)
    assert run(capsys, "shapes", tmp_path / "out", *words)[0] == 0
    before = shards_of(tmp_path / "out")
    code, err, _ = run(capsys, "shapes", tmp_path / "out", *words, "--seed", 1, "--codec", "mp4")
    assert (
        code == 2
        and "begun with other arguments: codec was 'npy' and is 'mp4'; seed was 0 and is 1" in err
    )
    assert shards_of(tmp_path / "out") == before
    code, err, out = run(capsys, "shapes", tmp_path / "out", *words, "--limit-bad", 7)
    assert code == 0 and "is finished already, train 19, validation 1" in out


def test_a_changed_list_is_noticed(tmp_path, capsys):
    data = pairs(tmp_path / "in", 3)
    assert run(capsys, data, tmp_path / "out")[0] == 0
    data.write_text(data.read_text() + "s0.mp4,t1.mp4,another,\n")
    code, err, _ = run(capsys, data, tmp_path / "out")
    assert code == 2 and "lists other triplets now" in err
    (tmp_path / "out" / "dataset_info.json").unlink()
    code, err, out = run(capsys, data, tmp_path / "out")
    assert code == 0 and "4 written" in out, "an unfinished one follows its list"


def test_folders_of_others_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    code, err, _ = run(capsys, "shapes", tmp_path, "--count", 5)
    assert code == 2 and "is not empty and was not made by this command" in err
    code, err, _ = run(capsys, "shapes", tmp_path / "mine.txt", "--count", 5)
    assert code == 2 and "cannot be made a folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_validation_is_chosen_by_name_alone():
    items = [readers.Item(f"name-{i}", "") for i in range(2000)]
    first, again = (
        split_by_origin(items, 0.1),
        split_by_origin(items[::-1] + [readers.Item("more", "")], 0.1),
    )
    assert {item.id for item in first["validation"]} == {
        item.id for item in again["validation"]
    } - {"more"}
    assert (
        150 < len(first["validation"]) < 250
        and len(first["train"]) + len(first["validation"]) == 2000
    )
    assert {split: len(part) for split, part in split_by_origin(items[:2], 1e-9).items()} == {
        "train": 1,
        "validation": 1,
    }
    assert {
        split: len(part) for split, part in split_by_origin(items[:2], 0.999999999).items()
    } == {
        "train": 1,
        "validation": 1,
    }
    assert list(split_by_origin(items[:1], 0.5)) == ["train"] and list(
        split_by_origin(items, 0)
    ) == ["train"]


def test_instructions_on_one_clip_stay_in_one_split():
    rows = [
        readers.ListRow(f"id-{i}", "", f"clip-{i % 50}.mp4", "edited.mp4", "make it red")
        for i in range(400)
    ]
    parts = split_by_origin(rows, 0.2)
    held = {split: {row.source for row in part} for split, part in parts.items()}
    assert (
        not held["train"] & held["validation"]
        and len(held["train"] | held["validation"]) == 50
        and 4 <= len(held["validation"]) <= 16
    )
    assert list(split_by_origin([row for row in rows if row.source == "clip-0.mp4"], 0.5)) == [
        "train"
    ]
    pairs = [
        readers.ImagePair(f"{i // 4}/{i % 4}", "", str(i // 4), str(i % 4)) for i in range(200)
    ]
    parts = split_by_origin(pairs, 0.3)
    assert not {pair.folder for pair in parts["train"]} & {
        pair.folder for pair in parts["validation"]
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codec", "gif"], "codec 'gif' is none of npy, mp4"),
        (["--size", "4"], "size 4 must be between 8"),
        (["--frames", "0"], "frames 0 must be"),
        (["--validation", "1"], "validation 1.0 must be"),
        (["--validation", "nan"], "validation nan must be"),
        (["--shard", "0"], "shard 0 must be"),
        (["--workers", "0"], "workers 0 must be"),
        (["--count", "0"], "count 0 must be"),
        (["--limit-bad", "-1"], "limit_bad -1 must be"),
        (["--fps", "8"], "its own 8 frames/s"),
        (["--kinds", "dance"], "edit kinds ['dance'] are not known"),
        (["--split", "test"], "split 'test' is none of"),
        (["--size", "20"], "multiple of 8"),
    ],
)
def test_bad_arguments(tmp_path, capsys, words, message):
    code, err, _ = run(capsys, "shapes", tmp_path / "out", *words)
    assert code == 2 and message in err and not (tmp_path / "out").exists()


START = """
import sys, time
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.loader import Loader
import tensorflow_datasets, grain  # what takes seconds and has nothing to do with the data
began = time.time()
with Loader(LoaderConfig(batch=16, frames=2, size=16), (sys.argv[1],), "pixels", None, seed=0) as loader:
    serials = next(loader)[0]["serial"]
    print(time.time() - began)
"""


@pytest.mark.slow
def test_a_hundred_thousand_tiny_triplets(tmp_path):
    """Killed half-way and run again; the loader starts as fast as on a hundred, and its first batches come from all over the set."""

    def command(count, output):
        return [
            sys.executable,
            "-m",
            "ivid2vid_jax.prepare",
            "--data",
            "shapes",
            "--count",
            str(count),
            "--frames",
            "2",
            "--size",
            "16",
            "--output",
            str(output),
        ]

    large, small = tmp_path / "large", tmp_path / "small"
    process = subprocess.Popen(command(100_000, large), stderr=subprocess.DEVNULL)
    while len(list(large.glob("*.array_record-*"))) < 60:
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(100_000, large), check=True, capture_output=True)
    subprocess.run(command(100, small), check=True, capture_output=True)
    counts = {split: len(open_dataset(large, split)) for split in ("train", "validation")}
    assert sum(counts.values()) == 100_000 and 0.015 < counts["validation"] / 100_000 < 0.025

    def start(folder):
        return min(
            float(
                subprocess.run(
                    [sys.executable, "-c", START, str(folder)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for _ in range(3)
        )

    times = start(small), start(large)
    print(f"first batch after {times[0]:.3f} s of 100 triplets, after {times[1]:.3f} s of 100,000")
    assert times[1] < times[0] + 0.5

    def first(folder):
        with Loader(
            LoaderConfig(batch=64, frames=2, size=16), (str(folder),), "pixels", None, seed=0
        ) as loader:
            order = loader.streams[0].order
            return np.array([order[i] for i in range(4096)])

    places = first(large)
    assert len(set(places)) == 4096 and abs(np.corrcoef(places, np.arange(4096))[0, 1]) < 0.05
    assert (np.histogram(places, bins=10, range=(0, counts["train"]))[0] > 300).all()
