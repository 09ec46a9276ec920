"""Batches for training: shuffled over the whole dataset, mixed, cropped and tokenised.

    with Loader(LoaderConfig(), ("shapes",), "edit", tokenize, seed=0) as loader:
        for batch, state in loader: ...  # loader.restore(state) continues after that batch

Batches are the same for any number of processes and workers. Every step takes its whole batch from
one stream: the clips or the images of one dataset. Which stream, and from which position on, is a
pure function of the seed and the step (`SampleSchedule`). So one pool of workers serves all
streams, and reading can resume at any step.
"""

import contextlib
import json
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import grain
import numpy as np
from absl import flags

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.examples import VIEWS, ExampleSequence, ExampleStream, Tokenize
from ivid2vid_jax.data.sample_schedule import SampleSchedule
from ivid2vid_jax.data.sources import (
    ShapesSource,
    TripletSource,
    has_image_pairs,
    open_latents,
    open_source,
)
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.signals import blocked_interrupts

log = logging.getLogger(__name__)

STREAMS = ("clips", "images")  # the two streams of a dataset
READY_BATCHES = 2  # finished batches that wait for the training loop
CLOSE_TIMEOUT = 10.0  # seconds that close() waits for a read that has begun

Batch = dict[str, np.ndarray]
State = dict[str, Any]


class Loader:
    """An endless iterator of (batch, state); `state` is a small JSON dict, the position after it.

    Batches by view, with b = this process's share of config.batch and T = config.frames or 1:
        "edit": {"source", "edited": uint8 [b, T, H, W, 3], "tokens": int32 [b, K]}, the tokens of
            the instruction.
        "caption": {"clip": uint8 [b, T, H, W, 3], "tokens": int32 [b, K]}, the source or the
            edited clip, at random, with its caption.
        "pixels": {"clip"}.
    All have "serial": uint32 [b], the example's position in its stream. Random numbers that depend
    on an example are derived from it, not from the row of the batch.

    With workers, scripts need the usual `if __name__ == "__main__":`.

    Args:
        config: what a batch contains.
        data: names of procedural worlds and folders of `prepare`.
        view: one of VIEWS.
        tokenize: text -> int32 [K]; it is pickled for the workers. None for "pixels".
        seed: decides order and augmentation.
        split: of the data.
        shard: this process's share; None = by JAX's process index.
        cache: keys of the data's latent caches; the first one that exists is read. Then batches
            have, instead of pixels, "target_mean", "target_std" and (view "edit") "source_mean",
            float16 [b, T, h, w, C], and "text", float16 [b, K, D], if the cache has embeddings.

    Attributes:
        state: position after the last batch.
        bad: name -> reason of the damaged records in the batches so far.
        waited: seconds that the consumer has waited for batches.

    Raises:
        UserError: wrong arguments; while iterating, more than limit_bad damaged records.
    """

    def __init__(
        self,
        config: LoaderConfig,
        data: tuple[str, ...],
        view: str,
        tokenize: Tokenize | None,
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
                f"batch {config.batch} cannot be divided by the {self.shard.shard_count} "
                "processes; make it a multiple"
            )
        self.weights = normalize_weights(config.weights, data)
        sources = [open_source(name, config, seed, split) for name in data]
        caches = [open_latents(name, cache, split) if cache else None for name in data]
        image_pairs = [
            has_image_pairs(name, source) for name, source in zip(data, sources, strict=True)
        ]
        self.images = np.array([image_share(config, pairs) for pairs in image_pairs])
        self.streams = tuple(
            ExampleStream(
                data=data[i],
                source=sources[i],
                order=shuffled_order(sources[i], seed, 2 * i + part),
                frames=frames,
                image_pairs=image_pairs[i],
                view=view,
                tokenize=tokenize,
                seed=seed,
                config=config,
                cache=caches[i],
            )
            for i in range(len(data))
            for part, frames in enumerate((config.frames, 1))
        )
        self.names = [f"{i}/{stream}" for i in range(len(data)) for stream in STREAMS]
        self.state: State = {"step": 0, "streams": dict.fromkeys(self.names, 0)}
        self.bad: dict[str, str] = {}
        self.waited = 0.0
        self._ready: queue.Queue | None = None
        self._stop_reading: Callable[[], Any] = lambda: None

    def restore(self, state: State) -> None:
        """Continues after the batch that came with `state`; UserError if it is of other data."""
        saved = sorted(state.get("streams", ()))
        if saved != sorted(self.names):
            raise UserError(
                f"the saved position is for streams {saved}, but --data gives {self.names}; "
                "resume with the same --data"
            )
        self.close()
        self.state = state

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[Batch, State]:
        if self._ready is None:
            self._ready = self._start()
        start = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - start
        if isinstance(item, BaseException):
            self.close()
            raise item
        batch, self.state = item
        self._note_bad(batch.pop("bad"))
        return batch, self.state

    def _start(self) -> queue.Queue:
        """Starts the thread that reads ahead; returns its queue."""
        starts = np.array([self.state["streams"][name] for name in self.names], np.int64)
        schedule = SampleSchedule(
            self.seed, self.config.batch, self.weights, self.images, self.state["step"], starts
        )
        ready: queue.Queue = queue.Queue(READY_BATCHES)
        stop = threading.Event()
        # for good in the thread and its workers, not in this thread
        with blocked_interrupts() if self.config.workers else contextlib.nullcontext():
            batches = read_batches(ExampleSequence(schedule, self.streams), self.config, self.shard)
            reader = threading.Thread(
                target=fill_queue,
                args=(add_states(batches, schedule, self.names), ready, stop),
                daemon=True,
                name="loader",
            )
            reader.start()
        # A finalizer, so that a loader that is never closed leaves no process behind either.
        self._stop_reading = weakref.finalize(self, stop_reading, stop, reader, batches)
        return ready

    def _note_bad(self, bad: np.ndarray) -> None:
        """Logs each damaged record once; UserError above the limit."""
        for name, reason in (pair for text in bad.tolist() if text for pair in json.loads(text)):
            if name not in self.bad:
                self.bad[name] = reason
                log.warning("%s cannot be used, the next record replaces it: %s", name, reason)
        limit = self.config.limit_bad
        if len(self.bad) > limit:
            last = list(self.bad)[-1]
            raise UserError(
                f"{len(self.bad)} damaged records, the limit is {limit}: "
                f"prepare the data again or raise limit_bad; the last: {last}"
            )

    def close(self) -> None:
        """Ends the thread and the workers; the next batch is then the one after `state`."""
        self._stop_reading()
        self._ready = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def normalize_weights(weights: tuple[float, ...], data: tuple[str, ...]) -> np.ndarray:
    """[datasets], sum 1; UserError if the weights do not fit the data."""
    if not data:
        raise UserError("no data is named; give 'shapes' or folders that the prepare command wrote")
    positive = all(0 < weight < np.inf for weight in weights)
    if weights and (len(weights) != len(data) or not positive):
        raise UserError(
            f"weights {weights} must be {len(data)} positive numbers, "
            f"one for each of {', '.join(data)}"
        )
    values = np.array(weights or [1.0] * len(data), float)
    return values / values.sum()


def image_share(config: LoaderConfig, image_pairs: bool) -> float:
    """Share of a dataset's steps that train on one-frame clips."""
    if config.frames == 1:
        return 1.0
    return 1 - config.pan if image_pairs else config.images


def shuffled_order(source: TripletSource, seed: int, stream: int) -> grain.MapDataset | None:
    """Position -> index, for ever: each epoch is a permutation, computed entry by entry.

    Each stream has its own order: a dataset's images must not follow its clips. None for a
    procedural world, whose triplets are random already.
    """
    if isinstance(source, ShapesSource):
        return None
    stream_seed = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
    return grain.MapDataset.range(len(source)).seed(stream_seed).shuffle().repeat(None)


def read_batches(
    examples: ExampleSequence, config: LoaderConfig, shard: grain.sharding.ShardOptions
) -> Any:
    """Returns an iterator over this process's share of each batch, read ahead by grain."""
    if config.workers and not flags.FLAGS.is_parsed():
        # grain's workers read absl flags, which only absl's own main function parses.
        flags.FLAGS.mark_as_parsed()
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


def add_states(
    batches: Iterator[Batch], schedule: SampleSchedule, names: list[str]
) -> Iterator[tuple[Batch, State]]:
    """Yields (batch, state after it).

    Arrays are copied out of the memory that is shared with the workers.
    """
    for step, batch in enumerate(batches, schedule.origin + 1):
        positions = schedule.positions(step).tolist()
        state = {"step": step, "streams": dict(zip(names, positions, strict=True))}
        yield {name: np.array(values) for name, values in batch.items()}, state


def fill_queue(items: Iterator, ready: queue.Queue, stop: threading.Event) -> None:
    """The reading thread: keeps the queue full until `stop` is set; an error is queued too."""
    try:
        for item in items:
            if not put_unless_stopped(item, ready, stop):
                return
    except BaseException as error:
        put_unless_stopped(error, ready, stop)


def put_unless_stopped(item: Any, ready: queue.Queue, stop: threading.Event) -> bool:
    """Waits for room in the queue; returns False if `stop` is set first."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def stop_reading(stop: threading.Event, reader: threading.Thread, batches: Any) -> None:
    """Ends the reading thread, then grain's threads and workers.

    In this order, because two threads must not use one of grain's iterators.
    """
    stop.set()
    reader.join(CLOSE_TIMEOUT)
    batches.close()
