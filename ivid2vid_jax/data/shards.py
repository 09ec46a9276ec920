"""Shards of a tfds dataset, written by any number of processes. A killed run goes on where it stopped, to the same bytes.

    shards = plan("triplets", {"train": items}, per_shard=500)
    outcomes = write_shards(folder, shards, features, make, workers=2)
    describe(folder, features, outcomes)

A shard is written aside and renamed when whole; then a line in `shards.jsonl` says what is in it. The description comes last: a folder
without one is not finished.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.locks import file_lock

LEDGER = "shards.jsonl"
ARGUMENTS = "prepare.json"
DESCRIPTION = ("features.json", "dataset_info.json")  # the one that makes a folder a dataset last


@dataclasses.dataclass(frozen=True)
class BadItem:
    """An item that gave no example. where: what a user would look for, a file or a row of one."""

    id: str
    where: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """Items that go into one file. digest: of the items, so that a changed list is noticed."""

    split: str
    file: str
    items: tuple
    digest: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a whole shard holds; a line of the ledger. payload: bytes of its records. size: bytes of the file. bad: position -> Bad."""

    split: str
    file: str
    digest: str
    written: int
    payload: int
    size: int
    bad: dict[int, BadItem]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Outcome":
        fields = json.loads(line)
        return cls(
            **{**fields, "bad": {int(at): BadItem(**each) for at, each in fields["bad"].items()}}
        )


@contextmanager
def lock_folder(folder: Path, arguments: dict):
    """Holds the folder for this process; `arguments`, all that decides what is written, are kept in it and compared when a run goes on.

    Raises UserError: the folder holds other things, was begun with other arguments (naming them), or another process is at work in it.
    """
    arguments = json.loads(json.dumps(arguments, default=str))
    path = folder / ARGUMENTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made a folder ({error.strerror}); name another"
        ) from error
    if not path.is_file() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: is not empty and was not made by this command; name a new folder"
        )
    with file_lock(
        path, f"{folder}: another process is at work in this folder; wait for it to end", "a+"
    ) as file:
        file.seek(0)
        text = file.read()
        if text.endswith("\n"):
            check_same_arguments(folder, json.loads(text), arguments)
        else:  # new, or killed before the line was whole, and so before any shard
            file.truncate(0)
            file.write(json.dumps(arguments) + "\n")
            file.flush()
        yield


def check_same_arguments(folder: Path, before: dict, now: dict) -> None:
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder}: was begun with other arguments: {'; '.join(changed)}; give the same ones, or another folder"
        )


Make = Callable[
    [Sequence], Iterable[dict | BadItem]
]  # items -> for each, in order, its example or why there is none


def plan_shards(name: str, splits: dict[str, Sequence], per_shard: int) -> list[Shard]:
    """Cuts each split's items into shards of `per_shard`. Items are small, picklable, and tell themselves apart by `repr`."""
    shards = []
    for split, items in splits.items():
        count = -(-len(items) // per_shard)
        for i in range(count):
            part = tuple(items[i * per_shard : (i + 1) * per_shard])
            digest = hashlib.sha256("\n".join(map(repr, part)).encode()).hexdigest()[:16]
            shards.append(
                Shard(split, f"{name}-{split}.array_record-{i:05d}-of-{count:05d}", part, digest)
            )
    return shards


def write_shards(
    folder: Path,
    shards: list[Shard],
    features,
    make: Make,
    workers: int = 1,
    limit_bad: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Writes the shards that are not whole yet and gives all outcomes in order.

    features: a tfds FeaturesDict. make: picklable when workers > 1; with one worker everything happens in this process.
    progress: called with (items done, items to do). With more than `limit_bad` bad items it stops after the shards at work and
    gives the outcomes it has; whole shards are never lost. Bad items of earlier runs are tried again.
    """
    known = finished_shards(folder, shards)
    clear(folder)
    done = {file: outcome for file, outcome in known.items() if not outcome.bad}
    jobs = [(shard, known.get(shard.file)) for shard in shards if shard.file not in done]
    items, total = 0, sum(len(shard.items) for shard, _ in jobs)
    with open(folder / LEDGER, "a") as ledger:
        ledger.write("\n")  # ends a line that a killed run tore off

        def enough() -> bool:
            return sum(len(outcome.bad) for outcome in done.values()) > limit_bad

        queue = iter(jobs)
        more = iter(lambda: None if enough() else next(queue, None), None)
        work = ShardWriter(folder, features, make)
        for result in (
            work.here(more) if workers == 1 else work.elsewhere(more, min(workers, len(jobs)))
        ):
            if isinstance(result, Outcome):
                done[result.file] = result
                ledger.write(result.to_json() + "\n")
                ledger.flush()
            else:
                items += result
                if progress:
                    progress(items, total)
    return [done[shard.file] for shard in shards if shard.file in done]


def finished_shards(folder: Path, shards: list[Shard]) -> dict[str, Outcome]:
    """The planned shards that earlier runs made, of the same items, by file name."""
    path, outcomes = folder / LEDGER, {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            outcome = Outcome.from_json(line)
        except (ValueError, TypeError, KeyError):
            continue  # torn off when the run was killed: the shard is made again
        outcomes[outcome.file] = outcome
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.array_record-*")}
    return {
        shard.file: outcomes[shard.file]
        for shard in shards
        if shard.file in outcomes and same(outcomes[shard.file], shard, sizes)
    }


def same(outcome: Outcome, shard: Shard, sizes: dict[str, int]) -> bool:
    return outcome.digest == shard.digest and outcome.size == sizes.get(shard.file)


def clear(folder: Path) -> None:
    """Removes what killed runs left aside."""
    for path in folder.glob(".*.array_record-*"):
        path.unlink()
    for path in folder.glob(".description.*"):
        shutil.rmtree(path)


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Makes shards, here or in other processes; yields an int for items passed and an Outcome for each shard."""

    folder: Path
    features: tfds.features.FeaturesDict
    make: Make

    def here(self, jobs: Iterator) -> Iterator[int | Outcome]:
        for shard, previous in jobs:
            yield from self.shard(shard, previous)

    def shard(self, shard: Shard, previous: Outcome | None) -> Iterator[int | Outcome]:
        """One shard; one that was whole before but for bad items is left as it is while all of them still are bad."""
        if previous and all(
            isinstance(each, BadItem)
            for each in self.make([shard.items[at] for at in previous.bad])
        ):
            yield len(shard.items)
            yield previous
            return
        aside = self.folder / f".{shard.file}.{os.getpid()}"
        try:
            yield from self.write(shard, aside)
        finally:
            aside.unlink(missing_ok=True)

    def write(self, shard: Shard, aside: Path) -> Iterator[int | Outcome]:
        serializer = ExampleSerializer(
            self.features.get_serialized_info()
        )  # what serialize_example uses, which leaves the order to chance
        writer, bad, written, payload = ArrayRecordWriter(str(aside), "group_size:1"), {}, 0, 0
        try:
            for at, example in enumerate(self.make(shard.items)):
                if isinstance(example, BadItem):
                    bad[at] = example
                else:
                    record = serializer.get_tf_example(
                        self.features.encode_example(example)
                    ).SerializeToString(deterministic=True)
                    writer.write(record)
                    written, payload = written + 1, payload + len(record)
                yield 1
        finally:
            close(writer, aside)
        if written + len(bad) != len(shard.items) or written != count(aside):
            counts = f"of {len(shard.items)} items {written} were made and {len(bad)} were bad; {count(aside)} can be read back"
            raise RuntimeError(f"{shard.file}: {counts}")
        size = aside.stat().st_size
        os.replace(aside, self.folder / shard.file)
        yield Outcome(shard.split, shard.file, shard.digest, written, payload, size, bad)

    def elsewhere(self, jobs: Iterator, workers: int) -> Iterator[int | Outcome]:
        """The same in `workers` processes, each on a pipe of its own, so that they notice when this process dies and it when they do."""
        context, pipes = get_context("spawn"), []
        processes = []
        try:
            for _ in range(workers):
                ours, theirs = context.Pipe()
                processes.append(context.Process(target=serve, args=(theirs, self), daemon=True))
                processes[-1].start()
                theirs.close()
                pipes.append(ours)
            yield from self.gather(jobs, pipes)
        finally:
            for pipe, process in zip(pipes, processes, strict=False):
                pipe.close()
                process.terminate()
                process.join()

    def gather(self, jobs: Iterator, pipes: list) -> Iterator[int | Outcome]:
        """Gives a job to each worker that asks (sends None) and yields what they send else, until all have been told that no job is left."""
        pipes = list(pipes)
        while pipes:
            for pipe in connection.wait(pipes):
                try:
                    message = pipe.recv()
                    if message is None:
                        job = next(jobs, None)
                        pipe.send(job)
                except (EOFError, ConnectionResetError, BrokenPipeError) as error:
                    raise UserError(
                        "a worker process died (out of memory?); whole shards are kept: run it again, with fewer workers"
                    ) from error
                if isinstance(message, Exception):
                    raise message
                if message is not None:
                    yield message
                elif job is None:
                    pipes.remove(pipe)


def serve(pipe, work: ShardWriter) -> None:
    """A worker process: asks for shards and sends what comes of them, until it is told to end or the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback of its own
    try:
        pipe.send(None)
        for shard, previous in iter(pipe.recv, None):
            for result in work.shard(shard, previous):
                pipe.send(result)
            pipe.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the process that asked for shards is gone
    except UserError as error:
        pipe.send(error)
    except Exception:
        pipe.send(
            RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
        )  # the error itself may not pickle


def close(writer: ArrayRecordWriter, path: Path) -> None:
    try:
        writer.close()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path.parent}: a shard cannot be written ({error}); make room there and run it again"
        ) from error


def count(path: Path) -> int:
    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def write_metadata(folder: Path, features, outcomes: list[Outcome], description: str = "") -> None:
    """Writes tfds' description of the shards, which makes the folder a dataset, and removes shards of an older plan.

    Splits without an example are left out. The ledger is written anew in the order of the shards.
    """
    planned, infos = {outcome.file for outcome in outcomes}, split_infos(folder, outcomes)
    for path in folder.glob("*.array_record-*"):
        if path.name not in planned:
            path.unlink()
    with tempfile.TemporaryDirectory(prefix=".description.", dir=folder) as aside:
        aside = Path(aside)
        for file in (file for info in infos for file in info.filenames):
            (aside / file).touch()  # write_metadata looks at names only
        more = dict(check_data=False, version="1.0.0", description=description)
        tfds.folder_dataset.write_metadata(
            data_dir=str(aside), features=features, split_infos=infos, **more
        )
        (aside / LEDGER).write_text("".join(outcome.to_json() + "\n" for outcome in outcomes))
        for name in (LEDGER, *DESCRIPTION):
            os.replace(aside / name, folder / name)


def is_described(folder: Path) -> bool:
    return (folder / DESCRIPTION[-1]).is_file()


def splits_of(outcomes: list[Outcome]) -> dict[str, int]:
    """Examples written, by split."""
    return {
        split: sum(each.written for each in outcomes if each.split == split)
        for split in dict.fromkeys(each.split for each in outcomes)
    }


def split_infos(folder: Path, outcomes: list[Outcome]) -> list[tfds.core.SplitInfo]:
    infos = []
    for split in (split for split, written in splits_of(outcomes).items() if written):
        parts = [outcome for outcome in outcomes if outcome.split == split]
        template = tfds.core.ShardedFileTemplate(
            data_dir=str(folder),
            dataset_name=parts[0].file.split("-")[0],
            filetype_suffix="array_record",
        )
        payload = sum(part.payload for part in parts)
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[part.written for part in parts],
                num_bytes=payload,
                filename_template=template,
            )
        )
    return infos
