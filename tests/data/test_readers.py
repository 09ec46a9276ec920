"""Readers of triplets, through the prepare command: lists, image pairs, shapes worlds."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.data import lists, readers, shapes
from ivid2vid_jax.data.clip_pairs import ClipSettings, read_pair
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.data.records import split_by_origin
from ivid2vid_jax.errors import UserError
from tests.data.prepared import options, read_triplets, run_prepare, write_pairs
from tests.video.test_video import moving_square, psnr, write

# ---- lists and folders ----


def test_a_csv_of_pairs(tmp_path, capsys):
    data = write_pairs(tmp_path / "in", s1={"clip": 255 - moving_square()})
    code, err, out = run_prepare(capsys, data, tmp_path / "out", *options("--size 24 --frames 6"))
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
    code, err, _ = run_prepare(
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
        ("l.csv", HEADER.encode() + b"a,b,\xe9\n", "not text in UTF-8 or UTF-16"),
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
    code, err, _ = run_prepare(capsys, data, tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_one_list_is_told_its_name(tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text(HEADER)
    code, err, _ = run_prepare(capsys, tmp_path, tmp_path / "out")
    assert code == 2 and f"name it: --data {tmp_path / 'pairs.csv'}" in err


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
    code, err, _ = run_prepare(capsys, tmp_path / "in", tmp_path / "out", "--size", 32)
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
    code, err, _ = run_prepare(capsys, "shapes", tmp_path / "out", *words)
    assert code == 0, err
    triplets = read_triplets(tmp_path / "out")
    assert len(triplets) == 30
    assert {triplet.edit_type for triplet in triplets.values()} == {"colour", "remove"}
    spec = shapes.sample_spec(3, 4, "eval", ("colour", "remove"), 16, 2)
    triplet = next(triplet for id, triplet in triplets.items() if id.endswith("-4"))
    np.testing.assert_array_equal(triplet.edited, shapes.triplet(spec).edited)
    assert shapes.Spec.from_json(triplet.provenance) == spec
    assert 3 <= len(open_dataset(tmp_path / "out", "validation")) <= 15


def test_pairs_of_two_rates_are_resampled_by_time(tmp_path):
    source = write(tmp_path / "source.mp4")
    edited = write(tmp_path / "edited.mp4", moving_square()[::2], rate=Fraction(5))
    first, second, fps = read_pair(source, edited, ClipSettings(fps=5))
    assert len(first) == len(second) == 6 and fps == 5
    assert psnr(first, second) > 30
    with pytest.raises(UserError, match=r"10 frames/s .* at 5: .*resample both by time \(--fps\)"):
        read_pair(source, edited, ClipSettings())


# ---- pairs that do not fit ----


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
    code, err, out = run_prepare(capsys, data, tmp_path / "out", "--size", 40)
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
        lists.ListRow(f"id-{i}", "", f"clip-{i % 50}.mp4", "edited.mp4", "make it red")
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
