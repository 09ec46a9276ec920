"""What happened to each item of a stage: one JSON line each, written when it is settled, so that a killed stage goes on where it was.

Statuses: "accepted"; "rejected", with the reason, for good; "failed", with the reason, to be tried again at the next start.
"""

import concurrent.futures
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ACCEPTED, REJECTED, FAILED = "accepted", "rejected", "failed"


class Manifest:
    """The lines of FOLDER/<stage>*.jsonl; new ones go to <stage>.jsonl, or <stage>-I-of-N.jsonl of a shard (I, N), which no other process writes."""

    def __init__(self, folder: Path, stage: str, shard: tuple[int, int] = (0, 1)):
        self.shard = shard
        name = stage if shard[1] == 1 else f"{stage}-{shard[0]}-of-{shard[1]}"
        self.file, self.lock = folder / f"{name}.jsonl", threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        mend(self.file)
        others = [path for path in folder.glob("*.jsonl") if path.stem == stage or path.stem.startswith(f"{stage}-")]
        self.lines = {line["id"]: line for path in sorted(others) for line in read(path)}

    def add(self, id: str, status: str, **facts) -> dict:
        """Settles an item; safe from several threads."""
        line = {"id": id, "status": status, "time": round(time.time(), 3), **facts}
        with self.lock, open(self.file, "a") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.lines[id] = line
        return line

    def settled(self, id: str) -> bool:
        """Whether there is nothing left to do for an item."""
        return id in self.lines and self.lines[id]["status"] != FAILED

    def accepted(self) -> Iterator[dict]:
        """The accepted items' lines, in the order of their ids whatever the order they were settled in."""
        return (self.lines[id] for id in sorted(self.lines) if self.lines[id]["status"] == ACCEPTED)

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The ids of this shard that are not settled."""
        index, count = self.shard
        return [id for i, id in enumerate(sorted(ids)) if i % count == index and not self.settled(id)]

    def reasons(self) -> dict[str, int]:
        """Reason of rejection or failure -> how many."""
        found: dict[str, int] = {}
        for line in self.lines.values():
            if line["status"] != ACCEPTED:
                key = f"{line['status']}: {line.get('reason', '')}"
                found[key] = found.get(key, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def settle(manifest: Manifest, ids: Iterable[str], work: Callable[[str], tuple[str, dict]], workers: int = 1, progress: Callable | None = None) -> None:
    """Settles the ids that are not, `workers` at a time: work(id) -> (status, facts). What one raises ends the stage; what was settled is kept.

    progress(done, total).
    """

    def one(id: str) -> None:
        status, facts = work(id)
        manifest.add(id, status, **facts)

    todo = manifest.missing(ids)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        under_way = [pool.submit(one, id) for id in todo]
        try:
            for done, future in enumerate(concurrent.futures.as_completed(under_way), 1):
                future.result()
                if progress:
                    progress(done, len(todo))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is under way still ends and is kept
            raise


def read(path: Path) -> Iterator[dict]:
    """The whole lines of a file; one that another process is writing is left out."""
    with open(path, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


def mend(path: Path) -> None:
    """Cuts off a last line that a killed process did not finish."""
    if path.is_file():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with open(path, "r+b") as lines:
                lines.truncate(len(whole))
