"""Shards of any features: resuming, errors in worker processes, and the folder's lock."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ivid2vid_jax.data import shards
from ivid2vid_jax.data.shard_writer import BadItem
from ivid2vid_jax.errors import UserError

LATENT = tfds.features.FeaturesDict(
    {"latent": tfds.features.Tensor(shape=(None, 2), dtype=np.float32, encoding="bytes")}
)


@dataclasses.dataclass(frozen=True)
class Number:
    """An item whose example is its index."""

    id: str
    index: int


def numbers(count):
    return [Number(str(i), i) for i in range(count)]


def make_examples(items):
    for item in items:
        if item.index == 7:
            yield BadItem(item.id, item.id, "seven")
        else:
            yield {"latent": np.full((2, 2), item.index, np.float32)}


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_hold_any_features(tmp_path, workers):
    splits = {"train": numbers(10), "validation": [Number("7", 7)]}
    planned = shards.plan_shards("latents", splits, 3)
    calls = []
    outcomes = shards.write_shards(
        tmp_path,
        planned,
        LATENT,
        make_examples,
        workers,
        limit_bad=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    shards.write_metadata(tmp_path, LATENT, outcomes)
    builder = tfds.builder_from_directory(tmp_path)
    records = builder.as_data_source(split="train")
    assert [int(record["latent"][0, 0]) for record in records] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert list(builder.info.splits) == ["train"], "a split without an example is left out"
    assert [outcome.written for outcome in outcomes] == [3, 3, 2, 1, 0]
    assert outcomes[2].bad[1].reason == "seven"
    assert calls[-1] == (11, 11)


def test_leftovers_of_a_killed_run_are_removed_and_its_ledger_is_continued(tmp_path):
    planned = shards.plan_shards("latents", {"train": numbers(6)}, 3)
    shards.write_shards(tmp_path, planned[:1], LATENT, make_examples)
    with (tmp_path / "shards.jsonl").open("a") as file:
        file.write('{"split": "train", "fi')
    (tmp_path / f".{planned[1].file}.1").write_bytes(b"half a shard")
    (tmp_path / ".description.x").mkdir()
    totals = set()
    shards.write_shards(
        tmp_path, planned, LATENT, make_examples, progress=lambda done, total: totals.add(total)
    )
    assert totals == {3}, "the first shard is not written again"
    files = [shard.file for shard in planned]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "shards.jsonl"]
    assert list(shards.finished_shards(tmp_path, planned)) == files
    (tmp_path / files[0]).write_bytes(b"cut")
    assert list(shards.finished_shards(tmp_path, planned)) == files[1:], (
        "a file whose size is not that of the ledger is not finished"
    )


def make_too_few(items):
    return list(make_examples(items))[:-1]


def raise_error(items):
    raise KeyError("a bug")


class UnpicklableError(Exception):
    def __init__(self, text, more):
        super().__init__(text)


def raise_unpicklable_error(items):
    raise UnpicklableError("a special bug", "more")


def die(items):
    os._exit(9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (make_too_few, RuntimeError, "of 3 items 2 were written"),
        (raise_error, RuntimeError, "a bug"),
        (raise_unpicklable_error, RuntimeError, "a special bug"),
        (die, UserError, "a worker process died"),
    ],
)
def test_an_error_in_a_worker_is_raised_by_the_parent(tmp_path, make, error, message):
    planned = shards.plan_shards("latents", {"train": numbers(6)}, 3)
    with pytest.raises(error, match=message):
        shards.write_shards(tmp_path, planned, LATENT, make, workers=2)
    assert not list(tmp_path.glob("latents-*"))
    assert not shards.is_finished(tmp_path)


def test_a_folder_is_locked_and_keeps_its_arguments(tmp_path):
    folder = tmp_path / "d"
    with (
        shards.lock_folder(folder, {"size": 8}),
        pytest.raises(UserError, match="another process is at work"),
        shards.lock_folder(folder, {"size": 8}),
    ):
        pass
    with (
        pytest.raises(UserError, match="size was 8 and is 9"),
        shards.lock_folder(folder, {"size": 9}),
    ):
        pass
    with shards.lock_folder(folder, {"size": 8}):
        pass
