"""The training loader: batches, order, resume, mixtures, background reading and wrong arguments."""

import dataclasses
import gc
import json
import subprocess
import sys
import time
from collections import Counter

import grain
import numpy as np
import psutil
import pytest

from ivid2vid_jax.data import loader, shapes
from ivid2vid_jax.data.examples import VIEWS
from ivid2vid_jax.data.loader import LoaderConfig
from ivid2vid_jax.errors import UserError
from tests.data.fakes import (
    SMALL,
    FakeSource,
    assert_same,
    open_loader,
    read_batches,
    record_indices,
    take,
    tokenize,
    worker_processes,
)

# ---- what a batch contains ----


def test_the_three_views():
    config = dataclasses.replace(SMALL, size=16, frames=3)
    (edit,), (caption,), (pixels,) = (
        read_batches(1, config, "shapes", view=view) for view in VIEWS
    )
    assert {name: (value.shape, value.dtype.name) for name, value in edit.items()} == {
        "source": ((8, 3, 16, 16, 3), "uint8"),
        "edited": ((8, 3, 16, 16, 3), "uint8"),
        "tokens": ((8, 4), "int32"),
        "serial": ((8,), "uint32"),
    }
    assert caption.keys() == {"clip", "tokens", "serial"}
    assert pixels.keys() == {"clip", "serial"}
    triplets = [shapes.triplet(shapes.sample_spec(0, i, size=16, frames=3)) for i in range(8)]
    np.testing.assert_array_equal(edit["source"], [triplet.source for triplet in triplets])
    np.testing.assert_array_equal(edit["edited"], [triplet.edited for triplet in triplets])
    tokens = [tokenize(triplet.instruction) for triplet in triplets]
    np.testing.assert_array_equal(edit["tokens"], tokens)
    np.testing.assert_array_equal(caption["clip"], pixels["clip"])


def test_each_clip_has_its_own_caption_and_both_sides_occur():
    sides = Counter()
    for batch in read_batches(5, SMALL, "shapes", view="caption"):
        rows = zip(batch["serial"], batch["clip"], batch["tokens"], strict=True)
        for serial, clip, tokens in rows:
            triplet = shapes.triplet(shapes.sample_spec(0, int(serial), size=8, frames=2))
            for side in ("source", "edited"):
                if np.array_equal(clip, getattr(triplet, side)):
                    caption = getattr(triplet, f"{side}_caption")
                    np.testing.assert_array_equal(tokens, tokenize(caption))
                    sides[side] += 1
    assert min(sides["source"], sides["edited"]) >= 10


def test_kinds_and_split_reach_the_shapes_world():
    config = dataclasses.replace(SMALL, kinds=("remove",))
    (batch,) = read_batches(1, config, "shapes", view="edit", split="eval", seed=5)
    specs = [shapes.sample_spec(5, i, "eval", ("remove",), 8, 2) for i in range(8)]
    expected = [shapes.triplet(spec).edited for spec in specs]
    np.testing.assert_array_equal(batch["edited"], expected)


def test_phrasings_reach_the_shapes_world():
    config = dataclasses.replace(SMALL, kinds=("remove",), phrasings=(2,))
    (batch,) = read_batches(1, config, "shapes", view="edit")
    assert {tuple(row) for row in batch["tokens"]} == {tuple(tokenize("take away the star"))}


# ---- order, resume and processes ----


@pytest.mark.parametrize(
    ("before", "after"), [(0, 0), (0, 2), pytest.param(2, 0, marks=pytest.mark.slow)]
)
def test_resume_is_exact(sources, before, after):
    """Three streams, crops, flips, a damaged record: a restart does not change later steps.

    before, after: number of workers.
    """
    sources |= {
        "a": FakeSource(50, side=12, damaged=(7,)),
        "b": FakeSource(5, frames=3, mark=1),
    }
    config = dataclasses.replace(SMALL, images=0.4, crop=0.5, flip=0.5, stride=2)
    data = ("a", "b", "shapes")
    with open_loader(config, *data, view="caption") as whole:
        expected = take(whole, 9)
    with open_loader(dataclasses.replace(config, workers=before), *data, view="caption") as first:
        assert_same(take(first, 4), expected[:4])
        state = json.loads(json.dumps(first.state))
    assert state == expected[3][1]
    with open_loader(dataclasses.replace(config, workers=after), *data, view="caption") as second:
        second.restore(state)
        assert_same(take(second, 5), expected[4:])
        second.restore(state)  # also while it is reading
        assert_same(take(second, 2), expected[4:6])
    assert len({len(batch["clip"][0]) for batch, _ in expected}) == 2


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_examples(sources, processes):
    sources["a"] = FakeSource(30)
    config = dataclasses.replace(SMALL, images=0.3, flip=0.5)
    whole = read_batches(6, config, "a", "shapes", view="edit")
    shards = [
        grain.sharding.ShardOptions(i, processes, drop_remainder=True) for i in range(processes)
    ]
    shares = [read_batches(6, config, "a", "shapes", view="edit", shard=shard) for shard in shards]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(len(part["serial"]) == 8 // processes for part in parts)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in batch}
        order = np.argsort(joined["serial"])
        for name in batch:
            np.testing.assert_array_equal(joined[name][order], batch[name])


def test_the_shuffle_is_global_and_each_epoch_complete(sources):
    sources |= {"large": FakeSource(60_000), "small": FakeSource(37)}
    (batch,) = read_batches(1, dataclasses.replace(SMALL, batch=64), "large")
    indices = record_indices(batch)
    assert min(indices) < 6_000
    assert max(indices) > 54_000
    batches = read_batches(37, SMALL, "small")  # 8 epochs
    epochs = np.array([i for batch in batches for i in record_indices(batch)]).reshape(8, 37)
    assert (np.sort(epochs) == np.arange(37)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 8
    assert [serial for batch in batches for serial in batch["serial"]] == list(range(8 * 37))
    (other_seed,) = read_batches(1, SMALL, "small", seed=1)
    assert record_indices(other_seed) != record_indices(batches[0])


def test_each_seed_and_stream_has_its_own_order(sources):
    """The clips and the images of a dataset too: else the second would repeat the first."""
    sources["a"] = FakeSource(40)
    config = dataclasses.replace(SMALL, batch=40, images=0.5)
    batches = [batch for seed in range(3) for batch in read_batches(6, config, "a", seed=seed)]
    assert {batch["clip"].shape[1] for batch in batches} == {1, 2}
    assert len({tuple(record_indices(batch)) for batch in batches}) == len(batches)


def test_the_start_does_not_grow_with_the_dataset(sources):
    """A list of the large one's indices would take a minute and 32 GB."""
    sources |= {"small": FakeSource(10**2), "large": FakeSource(4 * 10**9)}
    seconds = {}
    for name in ("small", "large", "small", "large"):  # the second round counts
        start = time.perf_counter()
        read_batches(1, SMALL, name)
        seconds[name] = time.perf_counter() - start
    assert seconds["large"] < seconds["small"] + 1


def test_a_dataset_smaller_than_a_batch_repeats(sources):
    sources["tiny"] = FakeSource(3)
    (batch,) = read_batches(1, SMALL, "tiny")
    indices = record_indices(batch)
    assert set(indices) == {0, 1, 2}
    assert len(indices) == 8


# ---- mixtures ----


def test_shares_of_a_mixture(sources):
    """Over 2,000 steps each share is within 4 standard deviations.

    Each batch comes from one stream, and its state says which.
    """
    sources |= {"a": FakeSource(90, mark=1), "b": FakeSource(90, mark=2)}
    config = LoaderConfig(batch=2, frames=2, size=8, images=0.25, weights=(3, 1))
    shares = {"0/clips": 9 / 16, "0/images": 3 / 16, "1/clips": 3 / 16, "1/images": 1 / 16}
    counts, before = Counter(), dict.fromkeys(shares, 0)
    with open_loader(config, "a", "b") as batches:
        for batch, state in take(batches, 2000):
            (mark,) = {int(blue) // 16 for blue in batch["clip"][..., 2].ravel()}
            part = "images" if batch["clip"].shape[1] == 1 else "clips"
            name = f"{mark - 1}/{part}"
            assert state["streams"] == before | {name: before[name] + 2}
            assert batch["serial"].tolist() == [before[name], before[name] + 1]
            before = state["streams"]
            counts[name] += 1
    for name, share in shares.items():
        deviation = (share * (1 - share) / 2000) ** 0.5
        assert abs(counts[name] / 2000 - share) < 4 * deviation, counts


def test_image_pairs_feed_one_frame_batches_or_moving_clips(sources):
    sources["stills"] = FakeSource(40, frames=1, side=40)
    batches = read_batches(20, SMALL, "stills")
    assert {batch["clip"].shape[1] for batch in batches} == {1}
    batches = read_batches(300, dataclasses.replace(SMALL, batch=1, pan=0.4), "stills")
    lengths = Counter(batch["clip"].shape[1] for batch in batches)
    assert set(lengths) == {1, 2}
    assert abs(lengths[2] / 300 - 0.4) < 4 * (0.24 / 300) ** 0.5


def test_training_on_one_frame_takes_any_dataset(sources):
    sources |= {"stills": FakeSource(9, frames=1), "clips": FakeSource(9)}
    with open_loader(dataclasses.replace(SMALL, frames=1, pan=0.5), "stills", "clips") as batches:
        steps = take(batches, 8)
    assert {batch["clip"].shape for batch, _ in steps} == {(8, 1, 8, 8, 3)}
    _, state = steps[-1]
    positions = state["streams"]
    # One order per dataset, not two of which each shows every record.
    assert positions["0/clips"] == positions["1/clips"] == 0
    assert positions["0/images"] + positions["1/images"] == 64


# ---- reading in the background ----


def test_waiting_is_counted(sources):
    sources["slow"] = FakeSource(50, pause=0.03)
    with open_loader(dataclasses.replace(SMALL, threads=0), "slow") as batches:
        start = time.perf_counter()
        take(batches, 3)
        seconds = time.perf_counter() - start
        assert 0.6 < batches.waited <= seconds
        time.sleep(1)  # time to read ahead, at a quarter of a second per batch
        before = batches.waited
        take(batches, loader.READY_BATCHES)
        assert batches.waited - before < 0.15


def test_reading_ahead_is_bounded(sources):
    reads = []

    class CountingSource(FakeSource):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    sources["a"] = CountingSource(10**6)
    with open_loader(dataclasses.replace(SMALL, threads=2), "a") as batches:
        next(batches)
        time.sleep(1)
        assert len(reads) <= 8 * (1 + loader.READY_BATCHES + 1 + 2 * 2) + 1


def test_closing_ends_threads_and_workers():
    process = psutil.Process()
    threads = process.num_threads()
    batches = open_loader(dataclasses.replace(SMALL, workers=2), "shapes")
    next(batches)
    assert len(worker_processes(process)) == 2
    batches.close()
    assert not worker_processes(process)
    forgotten = open_loader(SMALL, "shapes")
    next(forgotten)
    del forgotten
    gc.collect()
    # The feeder threads of multiprocessing end a little later.
    assert process.num_threads() <= threads + 2


FORGETFUL = """
import psutil
from ivid2vid_jax.data.loader import Loader, LoaderConfig
from tests.data.fakes import tokenize, worker_processes
if __name__ == "__main__":
    loader = Loader(LoaderConfig(batch=4, workers=2), ("shapes",), "edit", tokenize, 0)
    next(loader)
    print(*(child.pid for child in worker_processes(psutil.Process())))
"""


@pytest.mark.slow
def test_a_program_that_forgets_to_close_ends_and_leaves_nothing(tmp_path):
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    result = subprocess.run(
        [sys.executable, tmp_path / "forgetful.py"],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    children = [int(word) for word in result.stdout.split()]
    assert len(children) == 2
    assert not any(psutil.pid_exists(child) for child in children)
    assert "Traceback" not in result.stderr, result.stderr


@pytest.mark.slow
def test_memory_stays_flat(sources):
    """Over 3,000 small batches, after 50 for warming up, it grows by less than 30 MB.

    That is a twentieth of what the batches hold; 6.2 MB were seen in a whole run of the suite.
    """
    sources["a"] = FakeSource(1000, damaged=(3,))
    with open_loader(dataclasses.replace(SMALL, batch=2, size=128), "a") as batches:
        take(batches, 50)
        gc.collect()
        before = psutil.Process().memory_info().rss
        for _ in range(3000):
            next(batches)
        gc.collect()
        assert psutil.Process().memory_info().rss - before < 30e6


# ---- mistakes ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames 0 must be between 1"),
        ({"size": 20}, "size 20 must be a multiple of 8"),
        ({"batch": 0}, "batch 0"),
        ({"images": 1.5}, r"images 1\.5"),
        ({"crop": 0.0}, r"crop 0\.0"),
        ({"flip": -0.1}, r"flip -0\.1"),
        ({"pan": float("nan")}, "pan nan"),
        ({"stride": 0}, "stride 0"),
        ({"workers": -1}, "workers -1"),
        ({"kinds": ("colour", "melt")}, r"kinds \['melt'\] are unknown"),
        ({"phrasings": (4,)}, r"phrasings \(4,\): the kind 'shape' has the phrasings 0 to 3"),
        ({"weights": (1.0,)}, r"weights \(1\.0,\) must be 2 positive numbers"),
        ({"weights": (1.0, 0.0)}, "must be 2 positive numbers"),
        ({"weights": (1.0, -2.0)}, "must be 2 positive"),
    ],
)
def test_bad_settings(sources, change, message):
    sources["a"] = FakeSource(9)
    with pytest.raises(UserError, match=message):
        open_loader(dataclasses.replace(SMALL, **change), "shapes", "a")


def test_bad_arguments(sources, tmp_path):
    sources["torn"] = FakeSource(9, damaged=tuple(range(9)))
    with pytest.raises(UserError, match="neither a procedural world"):
        open_loader(SMALL, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="batch 8 cannot be divided by the 3 processes"):
        open_loader(SMALL, "shapes", shard=grain.sharding.ShardOptions(0, 3, drop_remainder=True))
    with pytest.raises(UserError, match="split 'test' of the shapes world is none of train, eval"):
        open_loader(SMALL, "shapes", split="test")
    message = "none of its first 9 records can be read; the last: record 8 is torn"
    with pytest.raises(UserError, match=message):
        open_loader(SMALL, "torn")
    with pytest.raises(UserError, match="no data is named"):
        open_loader(SMALL)
    with pytest.raises(UserError, match="seed -1 must be between"):
        open_loader(SMALL, "shapes", seed=-1)


def test_a_state_of_other_data_is_refused(sources):
    sources["a"] = FakeSource(9)
    with open_loader(SMALL, "a", "shapes") as two, open_loader(SMALL, "a") as one:
        for state in (two.state, {}):
            with pytest.raises(UserError, match="resume with the same --data"):
                one.restore(state)
