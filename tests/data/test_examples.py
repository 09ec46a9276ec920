"""Examples and their schedule: damaged records are replaced, random numbers are independent."""

import copy
import dataclasses
import logging
import threading
from collections import Counter

import numpy as np
import pytest

from ivid2vid_jax.data import augment, shapes
from ivid2vid_jax.data.loader import LoaderConfig
from ivid2vid_jax.data.sample_schedule import BLOCK_STEPS, SCHEDULE_RNG, SampleSchedule
from ivid2vid_jax.errors import UserError
from tests.data.fakes import SMALL, FakeSource, open_loader, read_batches, record_indices, take

# ---- the schedule ----


def schedule(origin, starts):
    """A schedule of two datasets, from a state on."""
    weights, images = np.array([0.7, 0.3]), np.array([0.2, 0.5])
    return SampleSchedule(3, 4, weights, images, origin, starts)


def test_a_schedule_is_the_same_from_any_origin():
    """Also across the blocks in which it is computed."""
    whole = schedule(0, np.zeros(4, np.int64))
    end = 3 * BLOCK_STEPS
    for origin in (1, BLOCK_STEPS - 1, BLOCK_STEPS, 2 * BLOCK_STEPS + 5):
        resumed = schedule(origin, whole.positions(origin))
        for step in (*range(origin, origin + 3), end - 1, end, end + 9):
            assert resumed.take(step) == whole.take(step)
    assert whole.positions(end).sum() == 4 * end


def test_an_example_does_not_reuse_random_numbers(monkeypatch):
    """The shapes world and the schedule are seeded by (seed, index) too.

    With the same seeds, augmentation would depend on what is shown.
    """
    first_numbers, sample_crop = {}, augment.sample_crop

    def spy(rng, *rest):
        # By thread, because a loader of an earlier test may still finish its last batch.
        first_numbers[threading.get_ident()] = copy.deepcopy(rng).random()
        return sample_crop(rng, *rest)

    monkeypatch.setattr(augment, "sample_crop", spy)
    with open_loader(SMALL, "shapes") as loader:
        loader.streams[0].example(7)
    others = [np.random.default_rng(seed).random() for seed in ([0, 7], [0, 7, SCHEDULE_RNG])]
    assert first_numbers[threading.get_ident()] not in others


# ---- damaged records ----


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_records_are_named_and_replaced(sources, caplog, workers):
    """By the next good one. Each is named once; other rows and other epochs do not change."""
    sources["a"] = FakeSource(24, damaged=(5, 6), one_frame=(11,), unequal=(23,))
    sources["whole"] = FakeSource(24)
    config = dataclasses.replace(SMALL, workers=workers)
    with caplog.at_level(logging.WARNING), open_loader(config, "a", view="edit") as loader:
        batches = [batch for batch, _ in take(loader, 6)]  # 2 epochs
        assert set(loader.bad) == {"a[5]", "a[6]", "a[11]", "a[23]"}
        assert "record 5 is torn" in loader.bad["a[5]"]
        assert "has 1 frames, fewer than the 2" in loader.bad["a[11]"]
        assert "differ in shape" in loader.bad["a[23]"]
    assert sum("cannot be used" in line for line in caplog.messages) == 4
    replacements = {5: 7, 6: 7, 11: 12, 23: 0}
    whole_batches = read_batches(6, SMALL, "whole", view="edit")
    for batch, whole in zip(batches, whole_batches, strict=True):
        assert batch.keys() == whole.keys()
        expected = [replacements.get(i, i) for i in record_indices(whole, "source")]
        assert record_indices(batch, "source") == expected


def test_too_many_damaged_records_stop_the_run(sources):
    sources["a"] = FakeSource(400, damaged=tuple(range(1, 400, 2)))
    message = r"2\d damaged records, the limit is 20.*raise limit_bad"
    with (
        open_loader(dataclasses.replace(SMALL, limit_bad=20), "a") as loader,
        pytest.raises(UserError, match=message),
    ):
        take(loader, 40)


def test_too_many_damaged_records_in_a_row_are_an_error(sources):
    sources["a"] = FakeSource(400, damaged=tuple(range(1, 400)))
    with (
        open_loader(SMALL, "a") as loader,
        pytest.raises(UserError, match=r"a\[\d+\] and the 15 records after it"),
    ):
        take(loader, 3)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_of_the_program_is_no_damaged_record(sources, workers):
    sources["a"] = FakeSource(20, faulty=(9,))
    with (
        open_loader(dataclasses.replace(SMALL, workers=workers), "a") as loader,
        pytest.raises(ZeroDivisionError, match="record 9"),
    ):
        take(loader, 4)


def shapes_triplet(index):
    return shapes.triplet(shapes.sample_spec(1, index, size=16, frames=3))


def write_dataset(folder, count, damaged):
    """Writes shapes as a prepared dataset; one edited clip is no clip."""
    # Imported here: workers import this module, and tfds takes seconds.
    from ivid2vid_jax.data import dataset, shards

    def make(indices):
        for index in indices:
            record = dataset.to_record(shapes_triplet(index), "npy")
            yield record | {"edited": b"torn"} if index == damaged else record

    planned = shards.plan_shards("triplets", {"train": range(count)}, 5)
    outcomes = shards.write_shards(folder, planned, dataset.features(), make)
    shards.write_metadata(folder, dataset.features(), outcomes)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_prepared_dataset_with_a_damaged_record(tmp_path, workers):
    write_dataset(tmp_path, 12, damaged=4)
    config = LoaderConfig(batch=12, frames=3, size=16, workers=workers)
    with open_loader(config, str(tmp_path), view="edit") as loader:
        batch, _ = next(loader)
        assert set(loader.bad) == {f"{tmp_path}[4]"}
        assert "edited" in loader.bad[f"{tmp_path}[4]"]
    actual = Counter(
        (source.tobytes(), edited.tobytes())
        for source, edited in zip(batch["source"], batch["edited"], strict=True)
    )
    triplets = [shapes_triplet(5 if index == 4 else index) for index in range(12)]
    expected = Counter((t.source.tobytes(), t.edited.tobytes()) for t in triplets)
    assert actual == expected
