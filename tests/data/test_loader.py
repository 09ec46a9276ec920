"""The training loader: exact to resume, the same for any number of processes and workers, and open about damaged records."""

import copy
import dataclasses
import gc
import itertools
import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter

import grain
import numpy as np
import psutil
import pytest

from ivid2vid_jax.data import augment, loader, shapes
from ivid2vid_jax.data.loader import Loader, LoaderConfig, SampleSchedule
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.utils.errors import UserError

SMALL = LoaderConfig(batch=8, frames=2, size=8)


@dataclasses.dataclass(frozen=True)
class Fake:
    """A dataset whose pixels say which record and which frame they are of; `mark` tells it from others."""

    length: int
    frames: int = 4
    mark: int = 0
    side: int = 8
    damaged: tuple[int, ...] = ()
    short: tuple[int, ...] = ()  # records with one frame
    odd: tuple[int, ...] = ()  # records whose two clips differ in shape
    broken: tuple[int, ...] = ()  # records that run into a fault of the program
    instruction: str = "make it snow"
    pause: float = 0.0  # seconds a record takes

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(self.pause)
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index in self.broken:
            raise ZeroDivisionError(f"record {index}")
        if index in self.damaged:
            raise UserError(f"record {index} is torn")
        clip = np.zeros(
            (1 if index in self.short else self.frames, self.side, self.side, 3), np.uint8
        )
        clip[..., 0], clip[..., 1] = index % 256, index // 256 % 256
        clip[..., 2] = (self.mark * 16 + np.arange(len(clip)))[:, None, None]
        edited = clip[:, :, : -1 if index in self.odd else None]
        return Triplet(
            str(index),
            clip,
            edited,
            self.instruction,
            "a source",
            "an edited one",
            "style",
            8.0,
            None,
            "CC0-1.0",
            "made up",
        )


def tokenize(text):
    return np.frombuffer(text.encode()[:4].ljust(4), np.uint8)


@pytest.fixture
def opened(monkeypatch):
    """Registers fakes under names; "shapes" stays what it is."""
    fakes, real = {}, loader.open_source
    monkeypatch.setattr(
        loader,
        "open_source",
        lambda name, *rest: fakes[name] if name in fakes else real(name, *rest),
    )
    return fakes


def make(config, *data, view="pixels", seed=0, **more):
    return Loader(config, data, view, None if view == "pixels" else tokenize, seed, **more)


def take(source, count):
    return list(itertools.islice(source, count))


def batches(count, *arguments, **more):
    with make(*arguments, **more) as source:
        return [batch for batch, _ in take(source, count)]


def records(batch, part="clip"):
    """The records' numbers, from the pixels."""
    return (batch[part][:, 0, 0, 0, 0] + 256 * batch[part][:, 0, 0, 0, 1].astype(int)).tolist()


def assert_same(one, other):
    assert len(one) == len(other)
    for (batch, state), (batch_other, state_other) in zip(one, other, strict=True):
        assert state == state_other and batch.keys() == batch_other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], batch_other[name])


# What a batch holds


def test_the_three_views(opened):
    config = dataclasses.replace(SMALL, size=16, frames=3)
    (edit,), (caption,), (pixels,) = (
        batches(1, config, "shapes", view=view) for view in loader.VIEWS
    )
    assert {name: (value.shape, value.dtype.name) for name, value in edit.items()} == {
        "source": ((8, 3, 16, 16, 3), "uint8"),
        "edited": ((8, 3, 16, 16, 3), "uint8"),
        "tokens": ((8, 4), "int32"),
        "serial": ((8,), "uint32"),
    }
    assert caption.keys() == {"clip", "tokens", "serial"} and pixels.keys() == {"clip", "serial"}
    truth = [shapes.triplet(shapes.sample_spec(0, i, size=16, frames=3)) for i in range(8)]
    np.testing.assert_array_equal(edit["source"], [each.source for each in truth])
    np.testing.assert_array_equal(edit["edited"], [each.edited for each in truth])
    np.testing.assert_array_equal(edit["tokens"], [tokenize(each.instruction) for each in truth])
    np.testing.assert_array_equal(caption["clip"], pixels["clip"])


def test_a_caption_is_that_of_its_clip_and_both_sides_come(opened):
    sides = Counter()
    for batch in batches(5, SMALL, "shapes", view="caption"):
        for serial, clip, tokens in zip(
            batch["serial"], batch["clip"], batch["tokens"], strict=True
        ):
            truth = shapes.triplet(shapes.sample_spec(0, int(serial), size=8, frames=2))
            for side, shown, text in (
                ("source", truth.source, truth.source_caption),
                ("edited", truth.edited, truth.edited_caption),
            ):
                if np.array_equal(clip, shown):
                    np.testing.assert_array_equal(tokens, tokenize(text))
                    sides[side] += 1
    assert min(sides["source"], sides["edited"]) >= 10


def test_kinds_and_split_reach_the_shapes_world(opened):
    config = dataclasses.replace(SMALL, kinds=("remove",))
    (batch,) = batches(1, config, "shapes", view="edit", split="eval", seed=5)
    truth = [shapes.triplet(shapes.sample_spec(5, i, "eval", ("remove",), 8, 2)) for i in range(8)]
    np.testing.assert_array_equal(batch["edited"], [each.edited for each in truth])


def test_sentences_reach_the_shapes_world(opened):
    (batch,) = batches(
        1, dataclasses.replace(SMALL, kinds=("remove",), phrasings=(2,)), "shapes", view="edit"
    )
    assert {tuple(row) for row in batch["tokens"]} == {tuple(tokenize("take away the star"))}


# Order, resume and processes


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0)])
def test_resume_is_exact(opened, before, after):
    """Three streams, crops, flips and a damaged record: step 4 and on after a restart are those of a run without one."""
    opened |= {"a": Fake(50, side=12, damaged=(7,)), "b": Fake(5, frames=3, mark=1)}
    config = dataclasses.replace(SMALL, images=0.4, crop=0.5, flip=0.5, stride=2)
    data = ("a", "b", "shapes")
    with make(config, *data, view="caption") as whole:
        truth = take(whole, 9)
    with make(dataclasses.replace(config, workers=before), *data, view="caption") as first:
        assert_same(truth[:4], take(first, 4))
        state = json.loads(json.dumps(first.state))
    assert state == truth[3][1]
    with make(dataclasses.replace(config, workers=after), *data, view="caption") as second:
        second.restore(state)
        assert_same(truth[4:], take(second, 5))
        second.restore(state)  # also in the middle of reading
        assert_same(truth[4:6], take(second, 2))
    assert len({len(batch["clip"][0]) for batch, _ in truth}) == 2


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_examples(opened, processes):
    opened["a"] = Fake(30)
    config = dataclasses.replace(SMALL, images=0.3, flip=0.5)
    whole = batches(6, config, "a", "shapes", view="edit")
    shards = [
        grain.sharding.ShardOptions(i, processes, drop_remainder=True) for i in range(processes)
    ]
    shares = [batches(6, config, "a", "shapes", view="edit", shard=shard) for shard in shards]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(len(part["serial"]) == 8 // processes for part in parts)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in batch}
        order = np.argsort(joined["serial"])
        for name in batch:
            np.testing.assert_array_equal(joined[name][order], batch[name])


def test_the_shuffle_is_global_and_each_epoch_complete(opened):
    opened |= {"large": Fake(60_000), "small": Fake(37)}
    (batch,) = batches(1, dataclasses.replace(SMALL, batch=64), "large")
    assert min(records(batch)) < 6_000 and max(records(batch)) > 54_000
    steps = batches(37, SMALL, "small")  # 8 epochs
    seen = np.array([number for batch in steps for number in records(batch)]).reshape(8, 37)
    assert (np.sort(seen) == np.arange(37)).all()
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 8
    assert [serial for batch in steps for serial in batch["serial"]] == list(range(8 * 37))
    assert records(batches(1, SMALL, "small", seed=1)[0]) != records(steps[0])


def test_seeds_and_streams_have_orders_of_their_own(opened):
    """The clips and the images of a dataset too: else the second stream would show what the first one has just shown."""
    opened["a"] = Fake(40)
    config = dataclasses.replace(SMALL, batch=40, images=0.5)
    epochs = [
        (batch["clip"].shape[1], *records(batch))
        for seed in range(3)
        for batch in batches(6, config, "a", seed=seed)
    ]
    assert {epoch[0] for epoch in epochs} == {1, 2} and len({epoch[1:] for epoch in epochs}) == len(
        epochs
    )


def test_the_start_does_not_grow_with_the_dataset(opened):
    opened |= {
        "small": Fake(10**2),
        "large": Fake(4 * 10**9),
    }  # a list of the latter's numbers would take a minute, and 32 GB
    spent = {}
    for name in ("small", "large", "small", "large"):
        began = time.perf_counter()
        batches(1, SMALL, name)
        spent[name] = time.perf_counter() - began  # of the second round, when all is imported
    assert spent["large"] < spent["small"] + 1


def test_a_dataset_smaller_than_a_batch_repeats(opened):
    opened["tiny"] = Fake(3)
    (batch,) = batches(1, SMALL, "tiny")
    assert set(records(batch)) == {0, 1, 2} and len(records(batch)) == 8


# Mixtures


def test_shares_of_a_mixture(opened):
    """Over 2,000 steps each share is within 4 standard deviations; a batch comes from one stream, and its state says which."""
    opened |= {"a": Fake(90, mark=1), "b": Fake(90, mark=2)}
    config = LoaderConfig(batch=2, frames=2, size=8, images=0.25, weights=(3, 1))
    counts, before = Counter(), dict.fromkeys(("0/clips", "0/images", "1/clips", "1/images"), 0)
    with make(config, "a", "b") as source:
        for batch, state in take(source, 2000):
            (mark,) = {int(each) // 16 for each in batch["clip"][..., 2].ravel()}
            name = f"{mark - 1}/{'images' if batch['clip'].shape[1] == 1 else 'clips'}"
            assert state["streams"] == before | {name: before[name] + 2}
            assert batch["serial"].tolist() == [before[name], before[name] + 1]
            before = state["streams"]
            counts[name] += 1
    for name, share in {
        "0/clips": 9 / 16,
        "0/images": 3 / 16,
        "1/clips": 3 / 16,
        "1/images": 1 / 16,
    }.items():
        assert abs(counts[name] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5, counts


def test_a_schedule_is_the_same_from_any_origin():
    """Also across the blocks in which it is drawn."""
    make_from = lambda origin, starts: SampleSchedule(
        3, 4, np.array([0.7, 0.3]), np.array([0.2, 0.5]), origin, starts
    )
    whole = make_from(0, np.zeros(4, np.int64))
    for origin in (1, loader.BLOCK - 1, loader.BLOCK, 2 * loader.BLOCK + 5):
        later = make_from(origin, whole.positions(origin))
        for step in (
            *range(origin, origin + 3),
            3 * loader.BLOCK - 1,
            3 * loader.BLOCK,
            3 * loader.BLOCK + 9,
        ):
            assert later.take(step) == whole.take(step)
    assert whole.positions(3 * loader.BLOCK).sum() == 4 * 3 * loader.BLOCK


def test_image_pairs_feed_one_frame_batches_or_moving_clips(opened):
    opened["stills"] = Fake(40, frames=1, side=40)
    lengths = [batch["clip"].shape[1] for batch in batches(20, SMALL, "stills")]
    assert set(lengths) == {1}
    lengths = Counter(
        batch["clip"].shape[1]
        for batch in batches(300, dataclasses.replace(SMALL, batch=1, pan=0.4), "stills")
    )
    assert set(lengths) == {1, 2} and abs(lengths[2] / 300 - 0.4) < 4 * (0.24 / 300) ** 0.5


def test_one_frame_of_training_takes_any_dataset(opened):
    opened |= {"stills": Fake(9, frames=1), "clips": Fake(9)}
    with make(dataclasses.replace(SMALL, frames=1, pan=0.5), "stills", "clips") as source:
        steps = take(source, 8)
    assert {batch["clip"].shape for batch, _ in steps} == {(8, 1, 8, 8, 3)}
    read = steps[-1][1]["streams"]
    assert (
        read["0/clips"] == read["1/clips"] == 0 and read["0/images"] + read["1/images"] == 64
    )  # one order, not two that show all twice


# Damaged records


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_records_are_named_and_substituted(opened, caplog, workers):
    """By the next one that is whole; all of them are named once, the rest of the batch stays, and each epoch names the same."""
    opened["a"] = Fake(24, damaged=(5, 6), short=(11,), odd=(23,))
    opened["whole"] = Fake(24)
    with (
        caplog.at_level(logging.WARNING),
        make(dataclasses.replace(SMALL, workers=workers), "a", view="edit") as source,
    ):
        found = [batch for batch, _ in take(source, 6)]  # 2 epochs
        assert set(source.bad) == {"a[5]", "a[6]", "a[11]", "a[23]"}
        assert (
            "record 5 is torn" in source.bad["a[5]"]
            and "has 1 frames, fewer than the 2" in source.bad["a[11]"]
        )
        assert "differ in shape" in source.bad["a[23]"]
    assert sum("cannot be used" in line for line in caplog.messages) == 4
    substitutes = {5: 7, 6: 7, 11: 12, 23: 0}
    for batch, whole in zip(found, batches(6, SMALL, "whole", view="edit"), strict=True):
        assert batch.keys() == whole.keys()
        assert records(batch, "source") == [
            substitutes.get(number, number) for number in records(whole, "source")
        ]


def test_too_many_damaged_records_stop_the_run(opened):
    opened["a"] = Fake(400, damaged=tuple(range(1, 400, 2)))
    message = r"2\d damaged records, the limit is 20.*raise limit_bad"
    with (
        make(dataclasses.replace(SMALL, limit_bad=20), "a") as source,
        pytest.raises(UserError, match=message),
    ):
        take(source, 40)


def test_nothing_whole_within_reach_is_an_error(opened):
    opened["a"] = Fake(400, damaged=tuple(range(1, 400)))
    with (
        make(SMALL, "a") as source,
        pytest.raises(UserError, match=r"a\[\d+\] and the 15 records after it"),
    ):
        take(source, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_program_is_no_damaged_record(opened, workers):
    opened["a"] = Fake(20, broken=(9,))
    with (
        make(dataclasses.replace(SMALL, workers=workers), "a") as source,
        pytest.raises(ZeroDivisionError, match="record 9"),
    ):
        take(source, 4)


def on_disk(folder, count, damaged):
    """Shapes as a prepared dataset; the edited clip of one is not a clip."""
    from ivid2vid_jax.data import (  # here: workers import this module for its fakes, and tfds takes seconds
        dataset,
        shards,
    )

    def make(indices):
        for index in indices:
            record = dataset.to_record(
                shapes.triplet(shapes.sample_spec(1, index, size=16, frames=3)), "npy"
            )
            yield record | {"edited": b"torn"} if index == damaged else record

    outcomes = shards.write_shards(
        folder, shards.plan_shards("triplets", {"train": range(count)}, 5), dataset.features(), make
    )
    shards.write_metadata(folder, dataset.features(), outcomes)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_prepared_dataset(tmp_path, workers):
    on_disk(tmp_path, 12, damaged=4)
    with make(
        LoaderConfig(batch=12, frames=3, size=16, workers=workers), str(tmp_path), view="edit"
    ) as source:
        batch, _ = next(source)
        assert set(source.bad) == {f"{tmp_path}[4]"} and "edited" in source.bad[f"{tmp_path}[4]"]
    truth = [shapes.triplet(shapes.sample_spec(1, index, size=16, frames=3)) for index in range(12)]
    found = Counter(
        (source.tobytes(), edited.tobytes())
        for source, edited in zip(batch["source"], batch["edited"], strict=True)
    )
    assert found == Counter(
        (each.source.tobytes(), each.edited.tobytes())
        for each in (*truth[:4], truth[5], *truth[5:])
    )


# Cuts


def test_a_cut_is_the_same_for_both_clips(opened):
    """Source == edited in, source == edited out, whatever is drawn; and the draws do differ between examples."""
    opened["a"] = Fake(60, frames=9, side=30)
    config = LoaderConfig(batch=30, frames=3, size=16, crop=0.4, flip=0.5, stride=3)
    (batch,) = batches(1, config, "a", view="edit")
    np.testing.assert_array_equal(batch["source"], batch["edited"])
    steps = np.diff(batch["source"][:, :, 0, 0, 2].astype(int), axis=1)
    assert (steps[:, 0] == steps[:, 1]).all() and set(steps[:, 0]) == {1, 2, 3}
    assert len(set(batch["source"][:, 0, 0, 0, 2])) >= 3  # starts


def gradient(frames, height, width):
    """[T, H, W, 3] whose red is x and whose green is y."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[..., 0], clip[..., 1] = np.arange(width), np.arange(height)[:, None]
    return clip


def cut(clip, index, size=16, frames=4, stride=1, crop=1.0, flip=0.0):
    return augment.apply_crop(
        clip,
        augment.sample_crop(np.random.default_rng(index), clip.shape, frames, stride, crop, flip),
        size,
    )


def test_what_fits_is_not_touched():
    clip = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(cut(clip, 0), clip)
    np.testing.assert_array_equal(cut(clip, 0, flip=1.0), clip[:, :, ::-1])
    wide = gradient(4, 16, 40)
    np.testing.assert_array_equal(cut(wide, 3), wide[:, :, 12:28])


def test_crops_keep_their_least_share_and_rest():
    clip, spans, corners = gradient(4, 60, 100), [], []
    for index in range(200):
        out = cut(clip, index, size=8, crop=0.5).astype(int)
        assert (out == out[:1]).all()
        across, down = out[0, 4, 7, 0] - out[0, 4, 0, 0], out[0, 7, 4, 1] - out[0, 0, 4, 1]
        assert abs(across - down) <= 2
        spans.append(across * 8 / 7)
        corners.append((out[0, 4, 0, 0], out[0, 0, 4, 1]))
    assert 28 <= min(spans) < 33 and 57 < max(spans) <= 62
    assert (
        min(x for x, _ in corners) < 8
        and max(x for x, _ in corners) > 55
        and max(y for _, y in corners) > 22
    )


def test_a_travelling_window_goes_evenly_and_by_fractions():
    image = gradient(1, 128, 200)
    travelled = []
    for index in range(60):
        draw = augment.sample_crop(np.random.default_rng(index), image.shape, 5, 1, 1.0, 0.0)
        steps = np.diff(draw.boxes, axis=0)
        np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-9)
        side = draw.boxes[0, 2] - draw.boxes[0, 0]
        assert 0.6 * 128 <= side <= 0.85 * 128
        assert (
            draw.boxes.min() >= 0
            and draw.boxes[:, 2].max() <= 200
            and draw.boxes[:, 3].max() <= 128
        )
        assert np.abs(draw.boxes[-1] - draw.boxes[0]).max() <= side / 2 + 1e-9
        out = augment.apply_crop(image, draw, 64).astype(float)
        np.testing.assert_allclose(
            out[:, 32, 20:44, 0].mean(1), draw.boxes[:, 0] + side / 2 - 0.5, atol=1
        )
        travelled.append(np.abs(steps[0, :2]).max() * 4)
    assert np.median(travelled) > 10


@pytest.mark.parametrize("index", range(3))
def test_the_smallest_pictures_can_travel(index):
    assert cut(gradient(1, 1, 1), index, size=8).shape == (4, 8, 8, 3)


def test_a_mirrored_clip_never_belies_its_words(opened):
    sided = ["add a hat on the Left", "remove the rightmost cat", "the right-hand one"]
    free = ["a bright night", "keep it upright", "make it snow"]
    assert all(augment.mentions_side(text) for text in sided) and not any(
        augment.mentions_side(text) for text in free
    )
    config = LoaderConfig(batch=200, frames=2, size=64, flip=1.0, threads=0)
    with make(config, "shapes", view="edit") as source:
        batch, _ = next(source)
    mirrored = 0
    for serial, edited in zip(batch["serial"], batch["edited"], strict=True):
        truth = shapes.triplet(shapes.sample_spec(0, int(serial), frames=2))
        flips = not any(word in truth.instruction for word in ("left", "right"))
        np.testing.assert_array_equal(edited, truth.edited[:, :, ::-1] if flips else truth.edited)
        mirrored += flips
    assert 100 < mirrored < 199


def test_captions_forbid_mirroring_too(opened):
    """Here the instruction names no side and the caption does."""

    @dataclasses.dataclass(frozen=True)
    class Sided(Fake):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            clip = gradient(4, 8, 8)
            return dataclasses.replace(
                record, source=clip, edited=clip, edited_caption="a dog on the right"
            )

    opened["a"] = Sided(20)
    (batch,) = batches(1, dataclasses.replace(SMALL, flip=1.0), "a")
    np.testing.assert_array_equal(
        batch["clip"], np.broadcast_to(gradient(2, 8, 8), batch["clip"].shape)
    )


def test_an_example_draws_apart_from_its_scene(opened, monkeypatch):
    """The shapes world draws from (seed, index) as well: had both the same numbers, chance would depend on what is shown."""
    firsts, draw = {}, augment.sample_crop

    def spy(rng, *rest):
        firsts[threading.get_ident()] = copy.deepcopy(
            rng
        ).random()  # by thread: one of an earlier test may still be at its last batch
        return draw(rng, *rest)

    monkeypatch.setattr(augment, "sample_crop", spy)
    with make(SMALL, "shapes") as source:
        source.streams[0].example(7)
    others = [np.random.default_rng(key).random() for key in ([0, 7], [0, 7, loader.CHOICES])]
    assert firsts[threading.get_ident()] not in others


# The reader in the background


def test_waiting_is_counted(opened):
    opened["slow"] = Fake(50, pause=0.03)
    with make(dataclasses.replace(SMALL, threads=0), "slow") as source:
        began = time.perf_counter()
        take(source, 3)
        spent = time.perf_counter() - began
        assert 0.6 < source.waited <= spent
        time.sleep(1)  # time to read ahead, at a quarter of a second a batch
        before = source.waited
        take(source, loader.READY)
        assert source.waited - before < 0.15


def test_reading_ahead_is_bounded(opened):
    class Counting(Fake):
        reads = []

        def __getitem__(self, index):
            self.reads.append(index)
            return super().__getitem__(index)

    opened["a"] = Counting(10**6)
    with make(dataclasses.replace(SMALL, threads=2), "a") as source:
        next(source)
        time.sleep(1)
        assert len(Counting.reads) <= 8 * (1 + loader.READY + 1 + 2 * 2) + 1


def workers_of(process):
    children = [
        child
        for child in process.children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_closing_ends_threads_and_workers(opened):
    me, threads = psutil.Process(), psutil.Process().num_threads()
    source = make(dataclasses.replace(SMALL, workers=2), "shapes")
    next(source)
    assert len(workers_of(me)) == 2
    source.close()
    assert not workers_of(me)
    forgotten = make(SMALL, "shapes")
    next(forgotten)
    del forgotten
    gc.collect()
    assert (
        psutil.Process().num_threads() <= threads + 2
    )  # multiprocessing's own feeder threads end a little later


FORGETFUL = """
import psutil
from ivid2vid_jax.data.loader import Loader, LoaderConfig
from tests.data.test_loader import tokenize, workers_of
if __name__ == "__main__":
    loader = Loader(LoaderConfig(batch=4, workers=2), ("shapes",), "edit", tokenize, 0)
    next(loader)
    print(*(child.pid for child in workers_of(psutil.Process())))
"""


def test_a_program_that_forgets_to_close_ends_and_leaves_nothing(tmp_path):
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    environment = {"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "forgetful.py"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    children = [int(word) for word in done.stdout.split()]
    assert len(children) == 2 and not any(psutil.pid_exists(child) for child in children)
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_memory_stays_flat(opened):
    """Over 3,000 small batches, after 50 for warming up: within 30 MB, a twentieth of what they hold (6.2 MB seen in a whole run of the suite)."""
    opened["a"] = Fake(1000, damaged=(3,))
    with make(dataclasses.replace(SMALL, batch=2, size=128), "a") as source:
        take(source, 50)
        gc.collect()
        before = psutil.Process().memory_info().rss
        for _ in range(3000):
            next(source)
        gc.collect()
        assert psutil.Process().memory_info().rss - before < 30e6


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames 0 must be between 1"),
        ({"size": 20}, "size 20 must be a multiple of 8"),
        ({"batch": 0}, "batch 0"),
        ({"images": 1.5}, "images 1.5"),
        ({"crop": 0.0}, "crop 0.0"),
        ({"flip": -0.1}, "flip -0.1"),
        ({"pan": float("nan")}, "pan nan"),
        ({"stride": 0}, "stride 0"),
        ({"workers": -1}, "workers -1"),
        ({"kinds": ("colour", "melt")}, r"kinds \['melt'\] are not known"),
        ({"phrasings": (4,)}, r"phrasings \(4,\): the kind 'shape' has the sentences 0 to 3"),
        ({"weights": (1.0,)}, r"weights \(1.0,\) must be 2 positive numbers"),
        ({"weights": (1.0, 0.0)}, "must be 2 positive numbers"),
        ({"weights": (1.0, -2.0)}, "must be 2 positive"),
    ],
)
def test_bad_settings(opened, change, message):
    opened["a"] = Fake(9)
    with pytest.raises(UserError, match=message):
        make(dataclasses.replace(SMALL, **change), "shapes", "a")


def test_bad_arguments(opened, tmp_path):
    opened["torn"] = Fake(9, damaged=tuple(range(9)))
    with pytest.raises(UserError, match="neither a procedural world"):
        make(SMALL, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="batch 8 cannot be divided by the 3 processes"):
        make(SMALL, "shapes", shard=grain.sharding.ShardOptions(0, 3, drop_remainder=True))
    with pytest.raises(UserError, match="split 'test' of the shapes world is none of train, eval"):
        make(SMALL, "shapes", split="test")
    with pytest.raises(
        UserError, match="none of its first 9 records can be read; the last: record 8 is torn"
    ):
        make(SMALL, "torn")
    with pytest.raises(UserError, match="no data is named"):
        make(SMALL)
    with pytest.raises(UserError, match="seed -1 must be between"):
        make(SMALL, "shapes", seed=-1)


def test_a_state_of_other_data_is_refused(opened):
    opened["a"] = Fake(9)
    with make(SMALL, "a", "shapes") as two, make(SMALL, "a") as one:
        for state in (two.state, {}):
            with pytest.raises(UserError, match="resume with the same --data"):
                one.restore(state)
