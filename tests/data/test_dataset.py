"""Datasets on disk: encoded clips and back, the dataset as tfds and as this package reads it."""

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
from ivid2vid_jax.errors import UserError
from tests.support.media import faststart
from tests.video.test_video import moving_square, psnr, write


def triplet(i, size=16, frames=2):
    spec = shapes.sample_spec(0, i, size=size, frames=frames)
    return dataclasses.replace(shapes.triplet(spec), id=f"t{i}")


def make_records(indices):
    for index in indices:
        yield dataset.to_record(triplet(index), "npy")


def write_dataset(folder, make=make_records, per_shard=4, **counts):
    """Writes a dataset with `counts` triplets in each split."""
    folder.mkdir()
    items = {split: range(count) for split, count in counts.items()}
    planned = shards.plan_shards("triplets", items, per_shard)
    outcomes = shards.write_shards(folder, planned, dataset.features(), make)
    shards.write_metadata(folder, dataset.features(), outcomes)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", train=10, validation=3)


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
    """It parses Python, which sometimes fails when many threads do it."""
    data = dataset.to_npy(np.asarray(array))
    monkeypatch.setattr(np, "load", None)
    actual = dataset.from_npy(data)
    np.testing.assert_array_equal(actual, array, strict=True)
    assert actual.flags.writeable


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
    clip[..., 0] //= 3  # coloured edges: chroma subsampling would cost quality
    data = encode_clip(clip, "mp4")
    decoded = decode_clip(data)
    assert decoded.shape == clip.shape
    assert psnr(decoded, clip) > 38
    np.testing.assert_array_equal(decode_clip(data, [7, 2]), decoded[[7, 2]])
    assert data == encode_clip(clip, "mp4")
    assert b" threads=1 " in data, "x264 writes its number of threads into the file"
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
    assert decoded.shape == (1, *picture.shape)
    assert psnr(decoded[0], picture) > 30
    assert clip_length(buffer.getvalue()) == 1


def damaged_bytes(kind):
    clip = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    if kind in ("npy", "mp4"):
        data = encode_clip(clip, kind)
        return data[: len(data) * 2 // 3]
    if kind == "png":
        buffer = io.BytesIO()
        Image.fromarray(clip[0]).save(buffer, kind)
        return buffer.getvalue()[:2000]
    return {
        "empty": b"",
        "text": b"not a clip at all",
        "floats": dataset.to_npy(np.zeros((2, 4, 4, 3), np.float32)),
        "one frame": dataset.to_npy(clip[0]),
    }[kind]


@pytest.mark.parametrize("kind", ["npy", "mp4", "png", "empty", "text", "floats", "one frame"])
def test_damage_is_named(kind):
    with pytest.raises(DamagedClip, match=r"damaged|no npy|holds"):
        decode_clip(damaged_bytes(kind))


def test_a_video_cut_off_between_two_frames_is_damaged(tmp_path):
    """The decoder does not notice; only the header tells how many frames there should be."""
    (tmp_path / "whole.mp4").write_bytes(encode_clip(moving_square(12), "mp4"))
    faststart(tmp_path / "whole.mp4", tmp_path / "front.mp4")
    with av.open(str(tmp_path / "front.mp4")) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    data = (tmp_path / "front.mp4").read_bytes()[: ends[7]]
    with pytest.raises(DamagedClip, match="announces 12 frames, 8 could be decoded"):
        decode_clip(data)
    assert decode_clip(data, [0, 1]).shape == (2, 48, 64, 3)


def test_frames_beyond_the_end():
    for codec in dataset.CODECS:
        with pytest.raises(IndexError):
            decode_clip(encode_clip(moving_square(4), codec), [1, 4])


def test_only_clips_and_known_codecs_are_encoded():
    with pytest.raises(ValueError, match="uint8"):
        encode_clip(np.zeros((2, 4, 4, 3), np.float32), "npy")
    with pytest.raises(UserError, match="'gif' is none of npy, mp4"):
        encode_clip(moving_square(2), "gif")


# ---- the dataset ----


def test_triplets_round_trip(folder):
    triplets = open_dataset(folder)
    assert len(triplets) == 10
    assert len(open_dataset(folder, "validation")) == 3
    for i in (0, 3, 9):
        expected, actual = vars(triplet(i)), vars(triplets[i])
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value, err_msg=name)
            assert type(actual[name]) is type(value), name


def test_no_mask_stays_none(tmp_path):
    expected = dataclasses.replace(
        triplet(0),
        mask=None,
        instruction="rends-la rouge: été 雪",
        fps=float(Fraction(30000, 1001)),
    )

    def make(items):
        return [dataset.to_record(expected, "mp4") for _ in items]

    actual = open_dataset(write_dataset(tmp_path / "d", make, train=1))[0]
    assert actual.mask is None
    assert actual.instruction == expected.instruction
    assert actual.fps == pytest.approx(expected.fps)
    assert psnr(actual.source, expected.source) > 38


def test_tfds_reads_it(folder):
    records = tfds.builder_from_directory(folder).as_data_source(split="train")
    assert "tensorflow" not in sys.modules
    assert [record["id"].decode() for record in records] == [f"t{i}" for i in range(10)]
    np.testing.assert_array_equal(decode_clip(records[7]["source"]), triplet(7).source)
    np.testing.assert_array_equal(open_dataset(folder, "train[5:8]")[1].edited, triplet(6).edited)


def test_neither_tensorflow_nor_av_is_needed(folder):
    """A machine without them reads npy clips: importing av fails, TensorFlow is not imported."""
    code = f"""
import sys
sys.modules["av"] = None
from ivid2vid_jax.data.dataset import open_dataset
print(open_dataset({str(folder)!r})[3].source.sum(), "tensorflow" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == [str(triplet(3).source.sum()), "False"]


def test_it_can_be_pickled(folder):
    triplets = open_dataset(folder)
    triplets[0]  # an open shard must not be pickled
    copy = pickle.loads(pickle.dumps(triplets))
    np.testing.assert_array_equal(copy[9].source, triplets[9].source)
    assert copy.record(9)["source"][:6] == b"\x93NUMPY"
    for i in (-1, 10):
        with pytest.raises(IndexError, match="10 triplets"):
            copy[i]


def test_a_damaged_clip_is_named_with_its_triplet(tmp_path):
    def make(items):
        for record in make_records(items):
            torn = {"edited": record["edited"][:100]} if record["id"] == "t2" else {}
            yield record | torn

    triplets = open_dataset(write_dataset(tmp_path / "d", make, train=4))
    triplets[1]
    with pytest.raises(DamagedClip, match=r"triplet t2: edited: a damaged \.npy"):
        triplets[2]


def test_a_damaged_shard_is_named(tmp_path):
    folder = write_dataset(tmp_path / "d", train=8)
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


def test_what_is_no_dataset(folder, tmp_path):
    with pytest.raises(UserError, match="no such dataset folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a dataset"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="no split 'test', only train, validation"):
        open_dataset(folder, "test")
    (tmp_path / "prepare.json").touch()
    with pytest.raises(UserError, match="not finished: run the same prepare again"):
        open_dataset(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="description cannot be read"):
        open_dataset(tmp_path)


def test_opening_takes_no_longer_for_more_triplets(tmp_path):
    record = dataset.to_record(triplet(0, size=8, frames=1), "npy")

    def make(items):
        return (record for _ in items)

    def opening_time(folder):
        start = time.perf_counter()
        open_dataset(folder)[99]
        return time.perf_counter() - start

    many = write_dataset(tmp_path / "many", make, per_shard=500, train=5_000)
    few = write_dataset(tmp_path / "few", make, per_shard=10, train=100)
    opening_time(few)
    assert len(open_dataset(many)) == 5_000
    many_time, few_time = (min(opening_time(f) for _ in range(5)) for f in (many, few))
    assert many_time < 2 * few_time + 0.05
