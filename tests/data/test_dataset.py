"""Triplets on disk: encoded clips there and back, the dataset as tfds and as we read it, shards that other data can use."""

import dataclasses
import io
import pickle
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ivid2vid_jax.data import dataset, shapes, shards
from ivid2vid_jax.data.dataset import (
    DamagedClip,
    clip_length,
    decode_clip,
    encode_clip,
    open_dataset,
)
from ivid2vid_jax.utils.errors import UserError
from tests.test_edit import faststart
from tests.video.test_video import moving_square, psnr, write


@dataclasses.dataclass(frozen=True)
class Number:
    """An item that is its own content."""

    id: str
    index: int


def triplet(i, size=16, frames=2):
    return dataclasses.replace(
        shapes.triplet(shapes.sample_spec(0, i, size=size, frames=frames)), id=f"t{i}"
    )


def from_shapes(items):
    for item in items:
        yield dataset.to_record(triplet(item.index), "npy")


def build(folder, make=from_shapes, per_shard=4, **counts):
    """A finished dataset with so many triplets in each split."""
    folder.mkdir()
    items = {split: [Number(f"t{i}", i) for i in range(count)] for split, count in counts.items()}
    planned = shards.plan_shards("triplets", items, per_shard)
    shards.write_metadata(
        folder, dataset.features(), shards.write_shards(folder, planned, dataset.features(), make)
    )
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("data") / "shapes", train=10, validation=3)


# ---- encoded clips ----


@pytest.mark.parametrize(
    "array",
    [
        np.float16([[1.5, -2]]),
        np.arange(5),
        np.zeros((2, 0, 3), np.uint8),
        np.ones((2, 2), bool),
        np.float32(3),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_arrays_are_read_without_numpys_reader(array, monkeypatch):
    """It parses Python, which fails now and then where many threads do it."""
    data = dataset.to_npy(np.asarray(array))
    monkeypatch.setattr(np, "load", None)
    found = dataset.from_npy(data)
    np.testing.assert_array_equal(found, array, strict=True)
    assert found.flags.writeable


def test_arrays_of_other_writers_are_read_too():
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(dataset.from_npy(dataset.to_npy(columns)), columns)


def test_npy_is_exact():
    clip = np.random.default_rng(0).integers(0, 256, (5, 17, 9, 3), np.uint8)
    data = encode_clip(clip, "npy")
    np.testing.assert_array_equal(decode_clip(data), clip)
    np.testing.assert_array_equal(decode_clip(data, [3, 0, 3]), clip[[3, 0, 3]])
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), clip)


@pytest.mark.parametrize("size", [(192, 256), (47, 63)])
def test_mp4_is_close_at_any_size_and_the_same_bytes_each_time(size):
    clip = moving_square(9, *size)
    clip[..., 0] //= 3  # colour: halved chroma would cost quality at the edges
    data = encode_clip(clip, "mp4")
    decoded = decode_clip(data)
    assert decoded.shape == clip.shape and psnr(decoded, clip) > 38
    np.testing.assert_array_equal(decode_clip(data, [7, 2]), decoded[[7, 2]])
    assert data == encode_clip(clip, "mp4") and b" threads=1 " in data, (
        "x264 writes the number of threads down"
    )
    assert len(data) < clip.nbytes / 5


def test_mp4_of_a_shapes_clip():
    clip = shapes.triplet(shapes.sample_spec(0, 1)).source
    assert psnr(decode_clip(encode_clip(clip, "mp4")), clip) > 38


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_files_are_decoded_as_they_are(tmp_path, ending):
    data = write(tmp_path / f"clip{ending}").read_bytes()
    assert psnr(decode_clip(data), moving_square()) > 33
    assert clip_length(data) == 12


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_an_image_is_a_clip_of_one_frame(kind):
    picture = moving_square(1)[0]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=95)
    decoded = decode_clip(buffer.getvalue())
    assert decoded.shape == (1, *picture.shape) and psnr(decoded[0], picture) > 30
    assert clip_length(buffer.getvalue()) == 1


def damaged(kind):
    clip = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    if kind in ("npy", "mp4"):
        data = encode_clip(clip, kind)
        return data[: len(data) * 2 // 3]
    if kind == "png":
        buffer = io.BytesIO()
        Image.fromarray(clip[0]).save(buffer, kind)
        return buffer.getvalue()[:2000]
    floats, flat = dataset.to_npy(np.zeros((2, 4, 4, 3), np.float32)), dataset.to_npy(clip[0])
    return {"empty": b"", "text": b"not a clip at all", "floats": floats, "flat": flat}[kind]


@pytest.mark.parametrize("kind", ["npy", "mp4", "png", "empty", "text", "floats", "flat"])
def test_damage_is_named(kind):
    with pytest.raises(DamagedClip, match="damaged|no npy|holds"):
        decode_clip(damaged(kind))


def test_a_video_cut_between_two_frames_is_not_a_shorter_one(tmp_path):
    """The decoder has nothing to complain of there; only the header knows better."""
    (tmp_path / "whole.mp4").write_bytes(encode_clip(moving_square(12), "mp4"))
    faststart(tmp_path / "whole.mp4", tmp_path / "front.mp4")
    with av.open(str(tmp_path / "front.mp4")) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    data = (tmp_path / "front.mp4").read_bytes()[: ends[7]]
    with pytest.raises(DamagedClip, match="announces 12 frames, 8 could be decoded"):
        decode_clip(data)
    assert decode_clip(data, [0, 1]).shape == (2, 48, 64, 3)


def test_frames_that_are_not_there():
    for codec in dataset.CODECS:
        with pytest.raises(IndexError):
            decode_clip(encode_clip(moving_square(4), codec), [1, 4])


def test_what_is_no_clip_is_not_encoded():
    with pytest.raises(ValueError, match="uint8"):
        encode_clip(np.zeros((2, 4, 4, 3), np.float32), "npy")
    with pytest.raises(UserError, match="'gif' is none of npy, mp4"):
        encode_clip(moving_square(2), "gif")


# ---- the dataset ----


def test_triplets_come_back_whole(built):
    triplets = open_dataset(built)
    assert len(triplets) == 10 and len(open_dataset(built, "validation")) == 3
    for i in (0, 3, 9):
        expected, got = vars(triplet(i)), vars(triplets[i])
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
            assert type(got[name]) is type(value), name


def test_no_mask_stays_none(tmp_path):
    plain = dataclasses.replace(
        triplet(0),
        mask=None,
        instruction="rends-la rouge: été 雪",
        fps=float(Fraction(30000, 1001)),
    )
    folder = build(
        tmp_path / "d", lambda items: [dataset.to_record(plain, "mp4") for _ in items], train=1
    )
    got = open_dataset(folder)[0]
    assert (
        got.mask is None
        and got.instruction == plain.instruction
        and got.fps == pytest.approx(plain.fps)
    )
    assert psnr(got.source, plain.source) > 38


def test_tfds_reads_it(built):
    records = tfds.builder_from_directory(built).as_data_source(split="train")
    assert "tensorflow" not in sys.modules
    assert len(records) == 10 and [record["id"].decode() for record in records] == [
        f"t{i}" for i in range(10)
    ]
    np.testing.assert_array_equal(decode_clip(records[7]["source"]), triplet(7).source)
    np.testing.assert_array_equal(open_dataset(built, "train[5:8]")[1].edited, triplet(6).edited)


def test_neither_tensorflow_nor_av_is_needed(built):
    """A bare accelerator machine reads npy clips: importing av is made to fail, TensorFlow must not be asked for."""
    code = f"""
import sys
sys.modules["av"] = None
from ivid2vid_jax.data.dataset import open_dataset
print(open_dataset({str(built)!r})[3].source.sum(), "tensorflow" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert said.split() == [str(triplet(3).source.sum()), "False"]


def test_it_travels_to_workers(built):
    triplets = open_dataset(built)
    triplets[0]  # an open shard does not travel
    again = pickle.loads(pickle.dumps(triplets))
    np.testing.assert_array_equal(again[9].source, triplets[9].source)
    assert again.record(9)["source"][:6] == b"\x93NUMPY"
    for i in (-1, 10):
        with pytest.raises(IndexError, match="10 triplets"):
            again[i]


def test_a_damaged_clip_is_named_with_its_triplet(tmp_path):
    def make(items):
        for record in from_shapes(items):
            yield record | {"edited": record["edited"][:100]} if record["id"] == "t2" else record

    triplets = open_dataset(build(tmp_path / "d", make, train=4))
    triplets[1]
    with pytest.raises(DamagedClip, match="triplet t2: edited: a damaged .npy"):
        triplets[2]


def test_a_damaged_shard_is_named(tmp_path):
    folder = build(tmp_path / "d", train=8)
    path = folder / "triplets-train.array_record-00001-of-00002"
    data = bytearray(path.read_bytes())
    data[200:4000] = bytes(3800)
    path.write_bytes(data)
    triplets = open_dataset(folder)
    assert triplets[3].id == "t3"
    with pytest.raises(UserError, match="triplet 4 of train cannot be read"):
        triplets[4]
    path.unlink()
    with pytest.raises(UserError, match=f"the shard {path.name} is missing"):
        open_dataset(folder)


def test_what_is_no_dataset(built, tmp_path):
    with pytest.raises(UserError, match="no such dataset folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a dataset"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="no split 'test', only train, validation"):
        open_dataset(built, "test")
    (tmp_path / "prepare.json").touch()
    with pytest.raises(UserError, match="not finished: run the same prepare again"):
        open_dataset(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="description cannot be read"):
        open_dataset(tmp_path)


def test_opening_takes_no_longer_for_more_triplets(tmp_path):
    record = dataset.to_record(triplet(0, size=8, frames=1), "npy")
    many = build(
        tmp_path / "many", lambda items: (record for _ in items), per_shard=2000, train=20_000
    )
    few = build(tmp_path / "few", lambda items: (record for _ in items), per_shard=10, train=100)

    def opening(folder):
        start = time.perf_counter()
        open_dataset(folder)[99]
        return time.perf_counter() - start

    opening(few)
    assert len(open_dataset(many)) == 20_000
    assert min(opening(many) for _ in range(5)) < 2 * min(opening(few) for _ in range(5)) + 0.05


# ---- shards of anything ----


def numbers(items):
    for item in items:
        yield (
            shards.BadItem(item.id, item.id, "seven")
            if item.index == 7
            else {"latent": np.full((2, 2), item.index, np.float32)}
        )


LATENT = tfds.features.FeaturesDict(
    {"latent": tfds.features.Tensor(shape=(None, 2), dtype=np.float32, encoding="bytes")}
)


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_hold_any_features(tmp_path, workers):
    planned = shards.plan_shards(
        "latents",
        {"train": [Number(str(i), i) for i in range(10)], "validation": [Number("7", 7)]},
        3,
    )
    seen = []
    outcomes = shards.write_shards(
        tmp_path,
        planned,
        LATENT,
        numbers,
        workers,
        limit_bad=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    shards.write_metadata(tmp_path, LATENT, outcomes)
    builder = tfds.builder_from_directory(tmp_path)
    assert [int(each["latent"][0, 0]) for each in builder.as_data_source(split="train")] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        9,
    ]
    assert list(builder.info.splits) == ["train"], "a split without an example is left out"
    assert [outcome.written for outcome in outcomes] == [3, 3, 2, 1, 0] and outcomes[2].bad[
        1
    ].reason == "seven"
    assert seen[-1] == (11, 11)


def test_what_a_killed_run_left_is_cleared_and_its_ledger_goes_on(tmp_path):
    planned = shards.plan_shards("latents", {"train": [Number(str(i), i) for i in range(6)]}, 3)
    shards.write_shards(tmp_path, planned[:1], LATENT, numbers)
    with open(tmp_path / "shards.jsonl", "a") as file:
        file.write('{"split": "train", "fi')
    (tmp_path / f".{planned[1].file}.1").write_bytes(b"half a shard")
    (tmp_path / ".description.x").mkdir()
    done = []
    shards.write_shards(
        tmp_path, planned, LATENT, numbers, progress=lambda now, total: done.append(total)
    )
    assert set(done) == {3}, "the first shard is not made again"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(shard.file for shard in planned),
        "shards.jsonl",
    ]
    assert list(shards.finished_shards(tmp_path, planned)) == [shard.file for shard in planned]
    (tmp_path / planned[0].file).write_bytes(b"cut")
    assert list(shards.finished_shards(tmp_path, planned)) == [planned[1].file], (
        "a file of another size than was written is not whole"
    )


def forgetful(items):
    return list(numbers(items))[:-1]


def failing(items):
    raise KeyError("a bug")


def dying(items):
    import os

    os._exit(9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (forgetful, RuntimeError, "of 3 items 2 were made"),
        (failing, RuntimeError, "a bug"),
        (dying, UserError, "a worker process died"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_an_error_here(tmp_path, make, error, message):
    planned = shards.plan_shards("latents", {"train": [Number(str(i), i) for i in range(6)]}, 3)
    with pytest.raises(error, match=message):
        shards.write_shards(tmp_path, planned, LATENT, make, workers=2)
    assert not list(tmp_path.glob("latents-*")) and not shards.is_described(tmp_path)


def test_a_folder_is_one_process_s_own(tmp_path):
    with shards.lock_folder(tmp_path / "d", {"size": 8}):
        with (
            pytest.raises(UserError, match="another process is at work"),
            shards.lock_folder(tmp_path / "d", {"size": 8}),
        ):
            pass
    with (
        pytest.raises(UserError, match="size was 8 and is 9"),
        shards.lock_folder(tmp_path / "d", {"size": 9}),
    ):
        pass
    with shards.lock_folder(tmp_path / "d", {"size": 8}):
        pass
