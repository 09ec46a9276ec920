"""Batches for training: shuffled over the whole dataset, mixed, cut and tokenised; the same whatever the number of processes and workers.

    with Loader(LoaderConfig(), ("shapes",), "edit", tokenize, seed=0) as loader:
        for batch, state in loader: ...     # `loader.restore(state)` goes on after that batch, to the bit

Every step takes its whole batch from one stream: the clips or the still images of one of the datasets. Which one, and from which place
on, is a pure function of the seed and the step (`Schedule`), so that one pool of workers serves all streams and any step can be found.
"""

import dataclasses
import json
import logging
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from ivid2vid_jax.data import augment, shapes
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.utils.errors import UserError

log = logging.getLogger(__name__)

VIEWS = ("edit", "caption", "pixels")
PARTS = ("clips", "images")  # the two streams of a dataset
TRIES = 16  # records in a row that are looked at in the place of a damaged one
BLOCK = 4096  # steps whose streams are drawn at once
DRAWS, CHOICES = (
    1,
    2,
)  # the example's and the schedule's share of a seed, apart from each other and from the shapes world's own (seed, index)
READY = 2  # batches that wait for the consumer
FAREWELL = 10.0  # seconds that close() waits for a read under way


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """An endless procedural world as a random-access source of triplets."""

    world: str
    config: LoaderConfig
    seed: int
    split: str

    def __len__(self) -> int:
        return 2**32

    def __getitem__(self, index: int) -> Triplet:
        c = self.config
        return shapes.triplet(
            shapes.sample_spec(
                self.seed, index, self.split, c.kinds, c.size, c.frames, self.world, c.phrasings
            )
        )


def open_source(name: str, config: LoaderConfig, seed: int, split: str):
    """A random-access source of triplets: a procedural world or a prepared folder. UserError where it is neither, or holds nothing."""
    if name in shapes.WORLDS:
        if split not in shapes.SPLITS:
            raise UserError(
                f"split {split!r} of the shapes world is none of {', '.join(shapes.SPLITS)}"
            )
        return ShapesSource(name, config, seed, split)
    if not Path(name).expanduser().is_dir():
        raise UserError(
            f"data {name!r} is neither a procedural world ({', '.join(shapes.WORLDS)}) nor a folder; name one that the prepare command wrote"
        )
    from ivid2vid_jax.data.dataset import (
        open_dataset,  # the shapes world needs no reader of files, nor the seconds its import takes
    )

    source = open_dataset(name, split)
    if not len(source):
        raise UserError(
            f"data {name!r}: its split {split!r} holds no records; choose another split, or prepare the data again"
        )
    return source


def held_out_split(name: str) -> str:
    """The split of a dataset, or of a procedural world, that training never sees."""
    return "eval" if name in shapes.WORLDS else "validation"


def open_latents(name: str, keys: tuple[str, ...], split: str):
    """The latent cache of a prepared dataset; UserError where there is none."""
    if name in shapes.WORLDS:
        raise UserError(
            f"the endless world {name!r} has no latent cache: prepare a dataset of it first (prepare --data {name})"
        )
    from ivid2vid_jax.data.latent_cache import open_cache

    return open_cache(Path(name), keys, split)


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleStream:
    """One dataset's clips or images in an endless order of their own; `example(position)` is a pure function. Sent to the workers."""

    data: str  # the name, for messages
    source: Any  # triplets by index
    order: (
        grain.MapDataset | None
    )  # position -> index: shuffled anew for each epoch; None = the index is the position
    frames: int
    stills: bool  # the dataset consists of image pairs
    view: str
    tokenize: Callable[[str], np.ndarray] | None
    seed: int
    config: LoaderConfig
    cache: Any = None  # latents of the same records (data/latent_cache.py): rows then hold them instead of pixels

    def example(self, position: int) -> dict[str, Any]:
        """One row of a batch; "bad" is a JSON list of (name, reason) of the records that this one stands in for, or empty."""
        first = position if self.order is None else self.order[position]
        bad = []
        for index in range(first, first + TRIES):
            name = f"{self.data}[{index % len(self.source)}]"
            try:
                row = self.made(
                    index % len(self.source), np.random.default_rng([self.seed, position, DRAWS])
                )
            except UserError as error:
                bad.append((name, str(error)))
            else:
                return row | {
                    "serial": np.uint32(position % 2**32),
                    "bad": json.dumps(bad) if bad else "",
                }
        raise UserError(
            f"{bad[0][0]} and the {TRIES - 1} records after it cannot be used; the first: {bad[0][1]}; prepare the data again"
        )

    def made(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The row of one record, from its pixels or from the cache."""
        return (
            self.row(self.source[index], rng) if self.cache is None else self.cached_row(index, rng)
        )

    def cached_row(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Posteriors of the clips, float16 [T, h, w, C], under the names that the trainer knows; one frame of them in the images' stream."""
        row = self.cache.row(index, int(rng.integers(self.cache.augmentations)))
        start = int(rng.integers(len(row["source_mean"]) - self.frames + 1))
        clips = {
            name: row[name][start : start + self.frames]
            for name in ("source_mean", "source_std", "edited_mean", "edited_std")
        }
        if self.view == "edit":
            target = {"target_mean": clips["edited_mean"], "target_std": clips["edited_std"]}
            text = {"text": row["text"]} if "text" in row else {}
            return (
                target
                | text
                | {"source_mean": clips["source_mean"], "tokens": self.tokens(row["instruction"])}
            )
        side = ("source", "edited")[rng.integers(2)]
        return {
            "target_mean": clips[f"{side}_mean"],
            "target_std": clips[f"{side}_std"],
            "tokens": self.tokens(row[f"{side}_caption"]),
        }

    def row(self, record: Triplet, rng: np.random.Generator) -> dict[str, np.ndarray]:
        self.check(record)
        config = self.config
        sided = augment.mentions_side(
            record.instruction, record.source_caption, record.edited_caption
        )
        cut = augment.sample_crop(
            rng,
            record.source.shape,
            self.frames,
            config.stride,
            config.crop,
            0.0 if sided else config.flip,
        )
        if self.view == "edit":
            source, edited = (
                augment.apply_crop(clip, cut, config.size)
                for clip in (record.source, record.edited)
            )
            return {"source": source, "edited": edited, "tokens": self.tokens(record.instruction)}
        clip, caption = [
            (record.source, record.source_caption),
            (record.edited, record.edited_caption),
        ][rng.integers(2)]
        row = {"clip": augment.apply_crop(clip, cut, config.size)}
        return row if self.view == "pixels" else row | {"tokens": self.tokens(caption)}

    def tokens(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenize(text), np.int32)

    def check(self, record: Triplet) -> None:
        """UserError for a record that no training clip can be cut from."""
        shape, edited = record.source.shape, record.edited.shape
        if shape != edited:
            raise UserError(f"record {record.id}: its clips differ in shape, {shape} and {edited}")
        if shape[0] < self.frames and not (self.stills and shape[0] == 1):
            raise UserError(
                f"record {record.id}: has {shape[0]} frames, fewer than the {self.frames} of a training clip; lower frames"
            )


def is_stills(name: str, source) -> bool:
    """Whether a dataset consists of image pairs, by its first record that can be read."""
    for index in range(min(TRIES, len(source))):
        try:
            return len(source[index].source) == 1
        except UserError as error:
            reason = error
    raise UserError(
        f"data {name!r}: none of its first {index + 1} records can be read; the last: {reason}; prepare the data again"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSchedule:
    """Which stream each step takes its batch from, and from which position on, from the step of a saved state on.

    Streams are numbered: the clips of the first dataset, its images, the clips of the second one, ...
    """

    seed: int
    batch: int
    weights: np.ndarray  # [datasets], sum 1
    images: np.ndarray  # [datasets], share of each one's steps that train on one-frame clips
    origin: int  # step of the state
    starts: np.ndarray  # [streams] int64, positions in that state
    blocks: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )  # what `block` found

    def take(self, step: int) -> tuple[int, int]:
        """(stream, position of the batch's first example) of a step."""
        stream = int(self.block(step // BLOCK)[0][step % BLOCK])
        return stream, int(self.positions(step)[stream])

    def positions(self, step: int) -> np.ndarray:
        """[streams] int64: how far each stream has been read before the step."""
        return self.starts + self.batch * (self.counts(step) - self.counts(self.origin))

    def counts(self, step: int) -> np.ndarray:
        """[streams]: how many steps, from the start of the origin's block up to this one, took each stream."""
        streams, before = self.block(step // BLOCK)
        return before + np.bincount(streams[: step % BLOCK], minlength=len(self.starts))

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The streams of a block's steps, [BLOCK], and what `counts` is at its first step.

        Threads may both find a block at once; they find the same.
        """
        if number not in self.blocks:
            before = np.zeros(len(self.starts), np.int64)
            if number > self.origin // BLOCK:
                streams, counted = self.block(number - 1)
                before = counted + np.bincount(streams, minlength=len(before))
            u, v = np.random.default_rng([self.seed, number, CHOICES]).random((2, BLOCK))
            data = np.searchsorted(np.cumsum(self.weights)[:-1], u, side="right")
            self.blocks[number] = (2 * data + (v < self.images[data])).astype(np.int16), before
        return self.blocks[number]


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleSequence:
    """All rows of all batches from the schedule's origin on, by number: what grain shards, batches and reads ahead."""

    schedule: SampleSchedule
    streams: tuple[ExampleStream, ...]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, row = divmod(index, self.schedule.batch)
        stream, position = self.schedule.take(self.schedule.origin + step)
        return self.streams[stream].example(position + row)


class Loader:
    """An endless iterator of (batch, state); `state` is a small JSON dict, the position after that batch.

    view: "edit": {"source", "edited": uint8 [b, T, H, W, 3], "tokens": int32 [b, K] of the instruction};
    "caption": {"clip": uint8 [b, T, H, W, 3], the source or the edited one by chance, "tokens" of its caption}; "pixels": {"clip"}.
    Always "serial": uint32 [b], the example's position in its stream: what is drawn for an example hangs on it, and on nothing else of
    the row. b: this process's share of config.batch; T: config.frames, or 1.
    tokenize: text -> int32 [K], sent to the workers by pickle. shard: this process's share; by default what JAX says.
    cache: keys of the data's latent caches, the first that is there is read; rows then hold "target_mean", "target_std", (edit:) "source_mean": float16
    [b, T, h, w, C], and "text": float16 [b, K, D] if it is in there, in the place of pixels.
    With workers, scripts need the usual `if __name__ == "__main__":`. Raises UserError for bad arguments, and while iterating when
    more than limit_bad records were damaged.

    bad: name -> reason of the damaged records of the batches handed out. waited: seconds that the consumer has waited in total.
    """

    def __init__(
        self,
        config: LoaderConfig,
        data: tuple[str, ...],
        view: str,
        tokenize: Callable[[str], np.ndarray] | None,
        seed: int,
        split: str = "train",
        shard: grain.sharding.ShardOptions | None = None,
        cache: tuple[str, ...] = (),
    ):
        config.check()
        if not 0 <= seed < 2**32:
            raise UserError(f"seed {seed} must be between 0 and {2**32 - 1}")
        if view not in VIEWS or (tokenize is None and view != "pixels"):
            raise ValueError(f"view {view!r} is none of {VIEWS}, or lacks its tokenizer")
        self.config, self.seed = config, seed
        self.shard = shard or grain.sharding.ShardByJaxProcess(drop_remainder=True)
        if config.batch % self.shard.shard_count:
            raise UserError(
                f"batch {config.batch} cannot be divided by the {self.shard.shard_count} processes; make it a multiple"
            )
        self.weights = normalised(config.weights, data)
        sources = [open_source(name, config, seed, split) for name in data]
        caches = [open_latents(name, cache, split) if cache else None for name in data]
        stills = [is_stills(name, source) for name, source in zip(data, sources, strict=True)]
        self.images = np.array(
            [
                1.0 if config.frames == 1 else 1 - config.pan if still else config.images
                for still in stills
            ]
        )
        self.streams = tuple(
            ExampleStream(
                name,
                source,
                shuffled(source, seed, 2 * i + part),
                frames,
                still,
                view,
                tokenize,
                seed,
                config,
                caches[i],
            )
            for i, (name, source, still) in enumerate(zip(data, sources, stills, strict=True))
            for part, frames in enumerate((config.frames, 1))
        )
        self.names = [f"{i}/{part}" for i in range(len(data)) for part in PARTS]
        self.state: dict[str, Any] = {"step": 0, "streams": dict.fromkeys(self.names, 0)}
        self.bad: dict[str, str] = {}
        self.waited = 0.0
        self._ready: queue.Queue | None = None
        self._shut: Callable[[], Any] = lambda: None

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch that came with `state`; UserError where it is the state of other data."""
        saved = sorted(state.get("streams", ()))
        if saved != sorted(self.names):
            raise UserError(
                f"the saved position is for streams {saved}, but --data gives {self.names}; resume with the same --data"
            )
        self.close()
        self.state = state

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if self._ready is None:
            self._start()
        began = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - began
        if isinstance(item, BaseException):
            self.close()
            raise item
        batch, self.state = item
        self._note(batch.pop("bad"))
        return batch, self.state

    def _start(self) -> None:
        starts = np.array([self.state["streams"][name] for name in self.names], np.int64)
        schedule = SampleSchedule(
            self.seed, self.config.batch, self.weights, self.images, self.state["step"], starts
        )
        batches = rows_in_batches(ExampleSequence(schedule, self.streams), self.config, self.shard)
        self._ready, stop = queue.Queue(READY), threading.Event()
        filler = threading.Thread(
            target=fill,
            args=(with_states(batches, schedule, self.names), self._ready, stop),
            daemon=True,
            name="loader",
        )
        filler.start()
        # a finalizer, so that a loader that is forgotten, or alive at exit, leaves no process behind
        self._shut = weakref.finalize(self, shut, stop, filler, batches)

    def _note(self, bad: np.ndarray) -> None:
        """Logs each damaged record once; UserError past the limit."""
        for name, reason in (pair for text in bad.tolist() if text for pair in json.loads(text)):
            if name not in self.bad:
                self.bad[name] = reason
                log.warning("%s cannot be used, the next record stands in: %s", name, reason)
        limit = self.config.limit_bad
        if len(self.bad) > limit:
            last = list(self.bad)[-1]
            raise UserError(
                f"{len(self.bad)} damaged records, the limit is {limit}: prepare the data again or raise limit_bad; the last: {last}"
            )

    def close(self) -> None:
        """Ends the thread and the workers; what was read ahead is dropped, so the next batch is the one after `state`."""
        self._shut()
        self._ready = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def normalised(weights: tuple[float, ...], data: tuple[str, ...]) -> np.ndarray:
    """[datasets], sum 1; UserError for weights that do not fit the data."""
    if not data:
        raise UserError("no data is named; give 'shapes' or folders that the prepare command wrote")
    if weights and (
        len(weights) != len(data) or not all(0 < weight < np.inf for weight in weights)
    ):
        raise UserError(
            f"weights {weights} must be {len(data)} positive numbers, one for each of {', '.join(data)}"
        )
    values = np.array(weights or [1.0] * len(data), float)
    return values / values.sum()


def shuffled(source, seed: int, stream: int) -> grain.MapDataset | None:
    """Positions of an endless stream -> indices of the source: each epoch a permutation of its own, computed entry by entry."""
    if isinstance(source, ShapesSource):
        return None
    own = int(
        np.random.SeedSequence([seed, stream]).generate_state(1)[0]
    )  # a dataset's clips and images in orders of their own
    return grain.MapDataset.range(len(source)).seed(own).shuffle().repeat(None)


def rows_in_batches(
    examples: ExampleSequence, config: LoaderConfig, shard: grain.sharding.ShardOptions
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of every batch, read ahead by grain's threads or workers."""
    if config.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which only absl's own main parses
    return iter(
        grain.experimental.ElasticIterator(
            grain.MapDataset.source(examples),
            config.batch,
            shard,
            read_options=grain.ReadOptions(
                num_threads=config.threads, prefetch_buffer_size=config.threads
            ),
            multiprocessing_options=grain.MultiprocessingOptions(num_workers=config.workers)
            if config.workers
            else None,
        )
    )


def with_states(
    batches: Iterator[dict[str, np.ndarray]], schedule: SampleSchedule, names: list[str]
):
    """Yields (batch, state after it); arrays are copied out of the memory that workers share, which a batch must not outlive."""
    for step, batch in enumerate(batches, schedule.origin + 1):
        state = {
            "step": step,
            "streams": dict(zip(names, schedule.positions(step).tolist(), strict=True)),
        }
        yield {name: np.array(values) for name, values in batch.items()}, state


def fill(items: Iterator, ready: queue.Queue, stop: threading.Event) -> None:
    """The thread's work: keeps the queue full until `stop`; an error goes the same way as the batches."""
    try:
        for item in items:
            if not put(item, ready, stop):
                return
    except BaseException as error:
        put(error, ready, stop)


def put(item, ready: queue.Queue, stop: threading.Event) -> bool:
    """Waits for room in the queue; False where `stop` came first."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def shut(stop: threading.Event, filler: threading.Thread, batches) -> None:
    """Ends the thread first, for grain's iterators are not made for two threads, then grain's threads and workers."""
    stop.set()
    filler.join(FAREWELL)
    batches.close()
