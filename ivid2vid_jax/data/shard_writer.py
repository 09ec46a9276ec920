"""Writes one shard of a dataset, or many in a pool of processes."""

import dataclasses
import json
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import signals

POLL_SECONDS = 0.2  # between two looks at the progress of other processes


@dataclasses.dataclass(frozen=True)
class BadItem:
    """An item that gave no example.

    Attributes:
        id: the item's.
        where: what a user would look for, a file or a row of a list.
        reason: what is wrong with it.
    """

    id: str
    where: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """The items of one file; `digest` is a hash of them, by which a changed list is noticed."""

    split: str
    file: str
    items: tuple
    digest: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished shard holds: one line of the ledger.

    Attributes:
        split: the shard's split.
        file: its file name.
        digest: of its items.
        written: number of examples.
        payload: bytes of the examples.
        size: bytes of the file.
        bad: position in the shard -> the item that gave no example.
    """

    split: str
    file: str
    digest: str
    written: int
    payload: int
    size: int
    bad: dict[int, BadItem]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Outcome":
        """The inverse of `to_json`."""
        fields = json.loads(line)
        bad = {int(position): BadItem(**item) for position, item in fields["bad"].items()}
        return cls(**{**fields, "bad": bad})


# Items -> for each, in order, its example or why there is none.
MakeExamples = Callable[[Sequence], Iterable[dict[str, Any] | BadItem]]
# A shard, and its outcome of an earlier run that left bad items.
Job = tuple[Shard, Outcome | None]
OnItems = Callable[[int], None]  # called with the number of items just finished


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes shards into a folder, each to a temporary file that is renamed when it is complete."""

    folder: Path
    features: tfds.features.FeaturesDict
    make: MakeExamples

    def write(self, shard: Shard, previous: Outcome | None, on_items: OnItems) -> Outcome:
        """Writes one shard.

        A shard that exists already, but for bad items, is kept if all of them are still bad.
        """
        if previous and self.all_bad([shard.items[position] for position in previous.bad]):
            on_items(len(shard.items))
            return previous
        temporary = self.folder / f".{shard.file}.{os.getpid()}"
        try:
            written, payload, bad = self.write_examples(shard, temporary, on_items)
            readable = count_records(temporary)
            if written + len(bad) != len(shard.items) or written != readable:
                raise RuntimeError(
                    f"{shard.file}: of {len(shard.items)} items {written} were written and "
                    f"{len(bad)} were bad; {readable} can be read back"
                )
            size = temporary.stat().st_size
            temporary.replace(self.folder / shard.file)
        finally:
            temporary.unlink(missing_ok=True)
        return Outcome(shard.split, shard.file, shard.digest, written, payload, size, bad)

    def all_bad(self, items: Sequence) -> bool:
        """Whether none of the items gives an example."""
        return all(isinstance(example, BadItem) for example in self.make(items))

    def write_examples(
        self, shard: Shard, path: Path, on_items: OnItems
    ) -> tuple[int, int, dict[int, BadItem]]:
        """Writes the file; returns the number of examples, their bytes, and the bad items."""
        # What FeaturesDict.serialize_example uses, but with a deterministic order of fields.
        serializer = ExampleSerializer(self.features.get_serialized_info())
        writer = ArrayRecordWriter(str(path), "group_size:1")
        written, payload = 0, 0
        bad: dict[int, BadItem] = {}
        try:
            for position, example in enumerate(self.make(shard.items)):
                if isinstance(example, BadItem):
                    bad[position] = example
                else:
                    proto = serializer.get_tf_example(self.features.encode_example(example))
                    record = proto.SerializeToString(deterministic=True)
                    writer.write(record)
                    written, payload = written + 1, payload + len(record)
                on_items(1)
        finally:
            close_writer(writer, path)
        return written, payload, bad


def close_writer(writer: ArrayRecordWriter, path: Path) -> None:
    """Closes an array_record file; UserError if that fails, usually because the disk is full."""
    try:
        writer.close()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path.parent}: a shard cannot be written ({error}); "
            "make room on the disk and run the same again"
        ) from error


def count_records(path: Path) -> int:
    """Number of records of an array_record file."""
    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


# ---- other processes ----


def write_in_processes(
    writer: ShardWriter, jobs: Iterator[Job], workers: int, on_items: OnItems
) -> Generator[Outcome, None, None]:
    """Writes shards in a pool of processes and yields their outcomes as they finish.

    A job is taken from `jobs` only when a worker is free, so that the caller can stop early.
    Errors in a worker, and the death of one, are raised here and end the other workers.
    """
    context = multiprocessing.get_context("spawn")
    with signals.blocked_interrupts():
        counter = context.Value("Q", 0)
    lifeline, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, start_worker, (counter, lifeline))
    reported = 0
    try:
        running = {submit(pool, writer, job) for job in islice(jobs, workers)}
        while running:
            finished, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            # Without the counter's lock: a worker that was killed may hold it for ever.
            count = counter.get_obj().value
            if count > reported:
                on_items(count - reported)
                reported = count
            for future in finished:
                yield future.result()
                running |= {submit(pool, writer, job) for job in islice(jobs, 1)}
    except BrokenProcessPool as error:
        signals.raise_if_interrupted()
        raise UserError(
            "a worker process died (out of memory?); finished shards are kept: "
            "run the same again with fewer workers"
        ) from error
    finally:
        our_end.close()
        lifeline.close()
        pool.shutdown(cancel_futures=True)


def submit(pool: ProcessPoolExecutor, writer: ShardWriter, job: Job) -> Future[Outcome]:
    """Queues a job, and may start a worker for it."""
    with signals.blocked_interrupts():
        return pool.submit(write_in_worker, writer, *job)


# In a worker process: the pool's count of finished items. Executors have no other way to hand a
# shared value to the function that they run.
_counter: Any = None


def start_worker(counter: Any, lifeline: Connection) -> None:
    """Prepares a worker process."""
    global _counter
    _counter = counter
    signals.end_silently_on_interrupt()
    threading.Thread(target=exit_with_parent, args=(lifeline,), daemon=True).start()


def exit_with_parent(lifeline: Connection) -> None:
    """Ends this process when the parent closes its end of the pipe, which it also does by dying.

    An executor's workers alone would outlive a parent that is killed.
    """
    lifeline.poll(None)
    os._exit(1)


def write_in_worker(writer: ShardWriter, shard: Shard, previous: Outcome | None) -> Outcome:
    """`ShardWriter.write` in a worker process."""
    try:
        return writer.write(shard, previous, add_to_counter)
    except UserError:
        raise
    except Exception as error:  # may not survive pickling
        raise RuntimeError(f"in a worker process:\n{traceback.format_exc()}") from error


def add_to_counter(count: int) -> None:
    """Reports finished items to the parent."""
    with _counter.get_lock():
        _counter.value += count
