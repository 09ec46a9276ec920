"""What happened to each item of a stage: one JSON line each, written when it is settled, so that a killed stage goes on where it was.

Statuses: "accepted"; "rejected", with the reason, for good; "failed", with the reason, to be tried again at the next start. A line's
mark is a hash of all that decided it, so that an item is done again where its input or the stage's settings have changed.
"""

import concurrent.futures
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ivid2vid_jax.utils import jsonl
from ivid2vid_jax.utils.locks import file_lock

ACCEPTED, REJECTED, FAILED = "accepted", "rejected", "failed"


class Manifest:
    """The lines of FOLDER/<stage>*.jsonl; new ones go to <stage>.jsonl, or <stage>-I-of-N.jsonl of a shard (I, N), which no other process writes."""

    def __init__(self, folder: Path, stage: str, shard: tuple[int, int] = (0, 1)):
        self.file, self.lock = file_of(folder, stage, shard), threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        jsonl.truncate_partial_line(self.file)
        others = [
            path
            for path in folder.glob("*.jsonl")
            if path.stem == stage or path.stem.startswith(f"{stage}-")
        ]
        found = sorted(
            (json.loads(line) for path in others for line in jsonl.read_complete_lines(path)),
            key=lambda line: line["time"],
        )
        self.lines = {line["id"]: line for line in found}

    def add(self, id: str, mark: str, status: str, **facts) -> dict:
        """Settles an item; safe from several threads."""
        line = {"id": id, "mark": mark, "status": status, "time": round(time.time(), 3), **facts}
        with self.lock, open(self.file, "a") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.lines[id] = line
        return line

    def is_done(self, id: str, mark: str) -> bool:
        """Whether there is nothing left to do for an item."""
        line = self.lines.get(id)
        return line is not None and line["mark"] == mark and line["status"] != FAILED

    def missing(self, marks: Mapping[str, str]) -> list[str]:
        """Of items, id -> mark, those that are not settled, in the order of their ids."""
        return [id for id in sorted(marks) if not self.is_done(id, marks[id])]

    def untried(self, marks: Mapping[str, str]) -> list[str]:
        """Of items, id -> mark, those that no line of this mark speaks of; unlike `missing` without those that failed, which may fail for ever."""
        return [id for id in sorted(marks) if self.lines.get(id, {}).get("mark") != marks[id]]

    def accepted(self, marks: Mapping[str, str]) -> list[dict]:
        """The accepted items' lines, of these marks, in the order of their ids whatever the order they were settled in."""
        return [
            self.lines[id]
            for id in sorted(marks)
            if self.is_done(id, marks[id]) and self.lines[id]["status"] == ACCEPTED
        ]

    def reasons(self, marks: Mapping[str, str]) -> dict[str, int]:
        """Status and reason -> how many of these items, the commonest first."""
        found: dict[str, int] = {}
        for id, mark in marks.items():
            line = self.lines.get(id)
            if line is not None and line["mark"] == mark and line["status"] != ACCEPTED:
                key = f"{line['status']}: {line.get('reason', '')}"
                found[key] = found.get(key, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def file_of(folder: Path, stage: str, shard: tuple[int, int]) -> Path:
    return folder / (
        f"{stage}.jsonl" if shard[1] == 1 else f"{stage}-{shard[0]}-of-{shard[1]}.jsonl"
    )


@contextmanager
def lock_stage(folder: Path, stage: str, shard: tuple[int, int]) -> Iterator[None]:
    """Holds a shard's part of the folder by its manifest of the first stage, which is there before anything else is: so a folder is known for what it
    is wherever its first run is killed. UserError where another process is at work on the same part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"--output {folder}: another process is at work on --shard {shard[0]}/{shard[1]} of it; wait for it to end, or take another shard"
    with file_lock(file_of(folder, stage, shard), busy):
        yield


def run_pending(
    manifest: Manifest,
    marks: Mapping[str, str],
    work: Callable[[str], tuple[str, dict]],
    workers: int = 1,
    progress: Callable | None = None,
) -> None:
    """Settles the items (id -> mark) that are not, `workers` at a time: work(id) -> (status, facts). What one raises ends the stage; what was
    settled is kept. progress(done, total).
    """

    def one(id: str) -> None:
        status, facts = work(id)
        manifest.add(id, marks[id], status, **facts)

    todo = manifest.missing(marks)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        under_way = [pool.submit(one, id) for id in todo]
        try:
            for done, future in enumerate(concurrent.futures.as_completed(under_way), 1):
                future.result()
                if progress:
                    progress(done, len(todo))
        except BaseException:
            pool.shutdown(
                wait=False, cancel_futures=True
            )  # what is under way still ends and is kept
            raise


def run_pending_groups(
    manifest: Manifest,
    marks: Mapping[str, str],
    groups: Iterable[list[str]],
    work: Callable[[list[str]], list[tuple[str, dict]]],
) -> None:
    """Settles items group by group, all of a group where any of it is missing, so that what an item becomes never hangs on what was done before."""
    todo = set(manifest.missing(marks))
    for group in groups:
        if todo.intersection(group):
            for id, (status, facts) in zip(group, work(group), strict=True):
                manifest.add(id, marks[id], status, **facts)


def fingerprint(*parts) -> str:
    """A hash of what decides an item: anything that JSON can say, settings and lines of earlier stages among them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def shard_index(id: str, shard: tuple[int, int]) -> bool:
    """Whether an item is a shard's; by a hash, so that it is for every list that it stands in."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") % shard[1] == shard[0]
