"""A tfds dataset written as shards, by one process or many, in the same bytes every time.

    shards = plan_shards("triplets", {"train": items}, per_shard=500)
    outcomes = write_shards(folder, shards, features, make, workers=2)
    write_metadata(folder, features, outcomes)

A killed run can be continued. Each shard is written to a temporary file and renamed when complete;
then a line of the ledger, `shards.jsonl`, records what is in it. tfds' metadata are written last: a
folder without them is not finished.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import tensorflow_datasets as tfds

from ivid2vid_jax.data.shard_writer import (
    Job,
    MakeExamples,
    Outcome,
    Shard,
    ShardWriter,
    write_in_processes,
)
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.locks import file_lock

LEDGER = "shards.jsonl"
ARGUMENTS = "prepare.json"
# The file that makes a folder a dataset is the last one.
METADATA = ("features.json", "dataset_info.json")


# ---- the folder ----


@contextmanager
def lock_folder(folder: Path, arguments: dict) -> Iterator[None]:
    """Locks a folder for this process, and stores the arguments that decide what is written.

    Raises:
        UserError: the folder holds other things, another process has locked it, or it was begun
            with other arguments.
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
    locked = f"{folder}: another process is at work in this folder; wait for it to end"
    with file_lock(path, locked, "a+") as file:
        file.seek(0)
        text = file.read()
        if text.endswith("\n"):
            check_same_arguments(folder, json.loads(text), arguments)
        else:  # new, or killed before the line was complete and so before any shard
            file.truncate(0)
            file.write(json.dumps(arguments) + "\n")
            file.flush()
        yield


def check_same_arguments(folder: Path, before: dict, now: dict) -> None:
    """Raises UserError that names the arguments that differ."""
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder}: was begun with other arguments: {'; '.join(changed)}; "
            "give the same ones, or another folder"
        )


def finished_shards(folder: Path, shards: list[Shard]) -> dict[str, Outcome]:
    """Returns the planned shards that earlier runs wrote from the same items, by file name."""
    ledger = folder / LEDGER
    outcomes = {}
    for line in ledger.read_text().splitlines() if ledger.is_file() else []:
        try:
            entry = Outcome.from_json(line)
        except (ValueError, TypeError, KeyError):
            continue  # cut off when the run was killed: the shard is written again
        outcomes[entry.file] = entry
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.array_record-*")}
    return {
        shard.file: outcome
        for shard in shards
        if (outcome := outcomes.get(shard.file))
        and outcome.digest == shard.digest
        and outcome.size == sizes.get(shard.file)
    }


def remove_temporary_files(folder: Path) -> None:
    """Removes what killed runs left behind."""
    for path in folder.glob(".*.array_record-*"):
        path.unlink()
    for path in folder.glob(".description.*"):
        shutil.rmtree(path)


# ---- writing ----


def plan_shards(name: str, splits: Mapping[str, Sequence], per_shard: int) -> list[Shard]:
    """Divides each split's items into shards of `per_shard`.

    Items are small and can be pickled; their `repr` tells them apart.
    """
    shards = []
    for split, items in splits.items():
        count = -(-len(items) // per_shard)
        for i in range(count):
            part = tuple(items[i * per_shard : (i + 1) * per_shard])
            digest = hashlib.sha256("\n".join(map(repr, part)).encode()).hexdigest()[:16]
            file = f"{name}-{split}.array_record-{i:05d}-of-{count:05d}"
            shards.append(Shard(split, file, part, digest))
    return shards


def write_shards(
    folder: Path,
    shards: list[Shard],
    features: tfds.features.FeaturesDict,
    make: MakeExamples,
    workers: int = 1,
    limit_bad: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Writes the shards that are not finished yet; returns all outcomes, in the order of `shards`.

    With more than `limit_bad` bad items no further shard is begun, and the outcomes so far are
    returned. Bad items of earlier runs are tried again.

    Args:
        folder: the dataset's.
        shards: the plan.
        features: of an example.
        make: items -> examples; it is pickled if there are several workers.
        workers: processes; with 1 everything happens in this one.
        limit_bad: bad items that are tolerated.
        progress: called with (items done, items to do).
    """
    known = finished_shards(folder, shards)
    remove_temporary_files(folder)
    done = {file: outcome for file, outcome in known.items() if not outcome.bad}
    unfinished = [(shard, known.get(shard.file)) for shard in shards if shard.file not in done]
    total = sum(len(shard.items) for shard, _ in unfinished)
    finished_items = 0

    def on_items(count: int) -> None:
        nonlocal finished_items
        finished_items += count
        if progress:
            progress(finished_items, total)

    def jobs() -> Iterator[Job]:
        for job in unfinished:
            if sum(len(outcome.bad) for outcome in done.values()) > limit_bad:
                return
            yield job

    writer = ShardWriter(folder, features, make)
    outcomes = (
        (writer.write(*job, on_items) for job in jobs())
        if workers == 1 or not unfinished
        else write_in_processes(writer, jobs(), min(workers, len(unfinished)), on_items)
    )
    with (folder / LEDGER).open("a") as ledger, closing(outcomes):
        ledger.write("\n")  # ends a line that a killed run cut off
        for outcome in outcomes:
            done[outcome.file] = outcome
            ledger.write(outcome.to_json() + "\n")
            ledger.flush()
    return [done[shard.file] for shard in shards if shard.file in done]


# ---- tfds' metadata ----


def write_metadata(
    folder: Path,
    features: tfds.features.FeaturesDict,
    outcomes: list[Outcome],
    description: str = "",
) -> None:
    """Writes tfds' metadata, which makes the folder a dataset; removes shards of an older plan.

    Splits without an example are left out. The ledger is rewritten in the order of the shards.
    """
    planned = {outcome.file for outcome in outcomes}
    infos = split_infos(folder, outcomes)
    for path in folder.glob("*.array_record-*"):
        if path.name not in planned:
            path.unlink()
    with tempfile.TemporaryDirectory(prefix=".description.", dir=folder) as name:
        temporary = Path(name)
        for info in infos:
            for file in info.filenames:
                (temporary / file).touch()  # tfds looks at the names only
        tfds.folder_dataset.write_metadata(
            data_dir=str(temporary),
            features=features,
            split_infos=infos,
            check_data=False,
            version="1.0.0",
            description=description,
        )
        ledger = "".join(outcome.to_json() + "\n" for outcome in outcomes)
        (temporary / LEDGER).write_text(ledger)
        for file in (LEDGER, *METADATA):
            (temporary / file).replace(folder / file)


def is_finished(folder: Path) -> bool:
    """Whether the metadata are there, that is, the dataset is finished."""
    return (folder / METADATA[-1]).is_file()


def splits_of(outcomes: list[Outcome]) -> dict[str, int]:
    """Number of examples of each split."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.split] = counts.get(outcome.split, 0) + outcome.written
    return counts


def split_infos(folder: Path, outcomes: list[Outcome]) -> list[tfds.core.SplitInfo]:
    """Describes to tfds the splits that have an example."""
    infos = []
    for split in (split for split, written in splits_of(outcomes).items() if written):
        parts = [outcome for outcome in outcomes if outcome.split == split]
        template = tfds.core.ShardedFileTemplate(
            data_dir=str(folder),
            dataset_name=parts[0].file.split("-")[0],
            filetype_suffix="array_record",
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[part.written for part in parts],
                num_bytes=sum(part.payload for part in parts),
                filename_template=template,
            )
        )
    return infos
