"""Folders in buckets (gs://, s3://, ...), through fsspec: a copy on this machine, fetched before it is used and pushed after it has changed.

Array_record, safetensors and the logs want real files; checkpoints alone go straight to the bucket, through orbax (training/checkpoints.py).
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec

from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.locks import file_lock

log = logging.getLogger(__name__)

EXCLUDED = (
    "checkpoints",
    "lock",
)  # of a RUN: what has its own way to the bucket, and what means something on this machine only


def is_remote(name: str | Path | None) -> bool:
    """Whether a name is a bucket's: scheme://..."""
    return isinstance(name, str) and "://" in name


def local_path(name: str) -> Path:
    """Where on this machine: the folder itself, or a bucket folder's copy in the user's cache."""
    if not is_remote(name):
        return Path(name).expanduser()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    url = name.rstrip("/")
    return (
        root
        / "ivid2vid_jax"
        / "remote"
        / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    )


def fetch_folder(name: str) -> str:
    """The local folder that holds what `name` holds now; a local name is given back. Raises UserError where it holds nothing."""
    if not is_remote(name):
        return name
    copy = BucketMirror(name)
    if not copy.fetch():
        raise UserError(f"{name}: there is nothing in this folder, or it may not be read")
    return str(copy.folder)


@contextlib.contextmanager
def mirror_run(name: str, writes: bool) -> Iterator[Callable[[], None]]:
    """A RUN folder that lives in a bucket: fetched here at the start; what is given pushes what has changed, as the end does. Nothing for a local one.

    writes: false in all processes but the first, whose pushes do nothing.
    """
    if not is_remote(name):
        yield lambda: None
        return
    copy = BucketMirror(name)
    copy.fetch()
    push = copy.push if writes else lambda: None
    try:
        yield push
    finally:
        push()


class BucketMirror:
    """A bucket's folder and its copy here. What is known of each file lies beside the copy: the bucket's version, size and time here."""

    def __init__(self, url: str):
        self.url, self.folder = url.rstrip("/"), local_path(url)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url}: cannot be reached ({error}); for gs:// pip install gcsfs, or the gcs extra"
            ) from error
        self.ledger = self.folder.with_name(f"{self.folder.name}.json")
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self) -> int:
        """Brings what is not here in the bucket's version, each file whole or not at all; returns how many files the bucket holds."""
        with self.known() as known:
            with self.told("fetched"):
                self.fs.invalidate_cache()
                names = {
                    path: path.removeprefix(self.root).lstrip("/")
                    for path in self.fs.find(self.root)
                }
            names = {
                path: name for path, name in names.items() if name.partition("/")[0] not in EXCLUDED
            }
            for path, name in names.items():
                version, file = self.fs.ukey(path), self.folder / name
                if known.get(name) == [version, *size_and_mtime(file)]:
                    continue
                log.info("fetching %s/%s", self.url, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                with self.told("fetched"), atomic_path(file) as temporary:
                    self.fs.get_file(path, str(temporary))
                known[name] = [version, *size_and_mtime(file)]
            return len(names)

    def push(self) -> None:
        """Takes what has changed here to the bucket."""
        with self.known() as known:
            for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
                name = str(file.relative_to(self.folder))
                if name.partition("/")[0] in EXCLUDED or known.get(name, [None])[
                    1:
                ] == size_and_mtime(file):
                    continue
                path, as_it_was = f"{self.root}/{name}", size_and_mtime(file)
                with self.told("written"):
                    self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                    self.fs.put_file(str(file), path)
                    self.fs.invalidate_cache()
                    known[name] = [self.fs.ukey(path), *as_it_was]

    @contextlib.contextmanager
    def known(self) -> Iterator[dict]:
        """Name -> [the bucket's version, size, time here]; held by one process of this machine at a time."""
        with file_lock(self.ledger, None, "a+") as file:
            file.seek(0)
            try:
                known = json.loads(file.read() or "{}")
            except ValueError:
                known = {}  # torn off by a kill: everything is looked at anew
            try:
                yield known
            finally:
                file.truncate(0)
                file.write(json.dumps(known))

    @contextlib.contextmanager
    def told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every bucket's library has its own
            raise UserError(
                f"{self.url}: could not be {what} ({type(error).__name__}: {error}); look at its name and at what this account may do there"
            ) from error


def size_and_mtime(file: Path) -> list[int]:
    """Size and time of a file; -1 where there is none."""
    try:
        found = file.stat()
    except OSError:
        return [-1, -1]
    return [found.st_size, found.st_mtime_ns]
