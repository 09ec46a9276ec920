"""The record of a stage: one JSON line per item, appended as soon as its result is known.

A stage that was killed therefore continues where it stopped. The statuses are "accepted";
"rejected", which is final; and "failed", which is retried at the next start. The last two come with
a reason. Each line holds the item's fingerprint, under the key "mark": a hash of everything that
decides the result. An item whose fingerprint has changed is processed again.
"""

import concurrent.futures
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivid2vid_jax.utils import jsonl
from ivid2vid_jax.utils.locks import file_lock

ACCEPTED, REJECTED, FAILED = "accepted", "rejected", "failed"
# An item's own values in a reason, and what stands for them in its criterion.
OWN_VALUES = (
    (r" (-?[\d.]+|-?inf|nan) below ", " below "),
    (r"^\d+x\d+ pixels: ", ""),
    (r"ends after \d+ of ", "ends before "),
    (r"nearly the same as (['\"]).*?\1(?=;|$)", "nearly the same as another"),
    (r"^/\S+: ", ""),
)
Outcome = tuple[str, dict[str, Any]]  # status, and facts for the manifest's line


class Manifest:
    """The lines of FOLDER/<stage>*.jsonl.

    New lines go to <stage>.jsonl or, for shard I of N, to <stage>-I-of-N.jsonl, which no other
    process writes. Lines of all shards are read; the newest line of an item counts.
    """

    def __init__(self, folder: Path, stage: str, shard: tuple[int, int] = (0, 1)):
        self.file, self.lock = manifest_path(folder, stage, shard), threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        jsonl.truncate_partial_line(self.file)
        paths = [
            path
            for path in folder.glob("*.jsonl")
            if path.stem == stage or path.stem.startswith(f"{stage}-")
        ]
        lines = sorted(
            (json.loads(line) for path in paths for line in jsonl.read_complete_lines(path)),
            key=lambda line: line["time"],
        )
        self.lines: dict[str, dict] = {line["id"]: line for line in lines}

    def add(self, id: str, fingerprint: str, status: str, **facts) -> dict:
        """Records the result of an item; thread-safe."""
        line = {
            "id": id,
            "mark": fingerprint,
            "status": status,
            "time": round(time.time(), 3),
            **facts,
        }
        with self.lock, self.file.open("a") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.lines[id] = line
        return line

    def is_done(self, id: str, fingerprint: str) -> bool:
        """Whether the item was accepted or rejected under this fingerprint."""
        line = self.lines.get(id)
        return line is not None and line["mark"] == fingerprint and line["status"] != FAILED

    def pending(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Ids of the items (id -> fingerprint) that are not done, sorted."""
        return [id for id in sorted(fingerprints) if not self.is_done(id, fingerprints[id])]

    def untried(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Like `pending`, without items that have failed: those may fail at every start."""
        return [
            id
            for id in sorted(fingerprints)
            if self.lines.get(id, {}).get("mark") != fingerprints[id]
        ]

    def accepted(self, fingerprints: Mapping[str, str]) -> list[dict]:
        """Lines of the accepted items, sorted by id."""
        return [
            self.lines[id]
            for id in sorted(fingerprints)
            if self.is_done(id, fingerprints[id]) and self.lines[id]["status"] == ACCEPTED
        ]

    def count(self, fingerprints: Mapping[str, str], status: str) -> int:
        """The number of items with a status under their present fingerprint."""
        lines = [self.lines.get(id, {}) for id in fingerprints]
        return sum(
            line.get("mark") == mark and line["status"] == status
            for line, mark in zip(lines, fingerprints.values(), strict=True)
        )

    def reasons(self, fingerprints: Mapping[str, str]) -> dict[str, int]:
        """Counts of "status: criterion" of the items that were not accepted, most frequent first.

        An item that misses several criteria counts for each of them.
        """
        counts: dict[str, int] = {}
        for id, fingerprint in fingerprints.items():
            line = self.lines.get(id)
            if line is not None and line["mark"] == fingerprint and line["status"] != ACCEPTED:
                for criterion in criteria(line.get("reason", "")):
                    key = f"{line['status']}: {criterion}"
                    counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def criteria(reason: str) -> list[str]:
    """The criteria of a reason, without an item's own values.

    "image 0.312 below 0.5; direction 0.1 below 0.2" -> ["image below 0.5", "direction below 0.2"]
    """
    for pattern, replacement in OWN_VALUES:
        reason = re.sub(pattern, replacement, reason)
    return list(dict.fromkeys(reason.split("; ")))


def manifest_path(folder: Path, stage: str, shard: tuple[int, int]) -> Path:
    """The file that a shard (index, count) appends to."""
    index, count = shard
    return folder / (f"{stage}.jsonl" if count == 1 else f"{stage}-{index}-of-{count}.jsonl")


@contextmanager
def lock_stage(folder: Path, stage: str, shard: tuple[int, int]) -> Iterator[None]:
    """Holds an exclusive lock on the file of a shard's stage; creates the folder and the file.

    Raises UserError if another process holds it. A run locks its first stage before it writes
    anything else, so its folder is recognised wherever that run is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if_locked = (
        f"--output {folder}: another process is at work on --shard {shard[0]}/{shard[1]} of it; "
        "wait for it to end, or take another shard"
    )
    with file_lock(manifest_path(folder, stage, shard), if_locked):
        yield


def run_pending(
    manifest: Manifest,
    fingerprints: Mapping[str, str],
    work: Callable[[str], Outcome],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Processes the items that are not done, in `workers` threads.

    An exception of `work` ends the stage; items that are under way still end and are recorded.

    Args:
        manifest: receives a line per item.
        fingerprints: item id -> fingerprint.
        work: called with an item's id.
        workers: items at once.
        progress: called as progress(done, total).
    """

    def process(id: str) -> None:
        status, facts = work(id)
        manifest.add(id, fingerprints[id], status, **facts)

    pending = manifest.pending(fingerprints)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(process, id) for id in pending]
        try:
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                future.result()
                if progress:
                    progress(done, len(pending))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_pending_groups(
    manifest: Manifest,
    fingerprints: Mapping[str, str],
    groups: Iterable[list[str]],
    work: Callable[[list[str]], list[Outcome]],
) -> None:
    """Processes items group by group, in full wherever one item of the group is not done.

    The groups are thus the same at every start, and with them the results.
    """
    pending = set(manifest.pending(fingerprints))
    for group in groups:
        if pending.intersection(group):
            for id, (status, facts) in zip(group, work(group), strict=True):
                manifest.add(id, fingerprints[id], status, **facts)


def in_shard(id: str, shard: tuple[int, int]) -> bool:
    """Whether an item belongs to a shard (index, count); by a hash of its id alone."""
    index, count = shard
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") % count == index
