"""Folders in buckets (gs://, s3://, ...): a local mirror, downloaded before use and uploaded after.

array_record, safetensors and the logs need local files, so these folders are mirrored through
fsspec. Checkpoints are written to the bucket directly, through orbax (training/checkpoints.py).
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import fsspec

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.atomic import atomic_path, is_temporary
from ivid2vid_jax.utils.locks import file_lock
from ivid2vid_jax.utils.versions import install_command

log = logging.getLogger(__name__)

# Top-level names of a RUN that are not mirrored: orbax writes checkpoints, and a lock is local.
EXCLUDED = ("checkpoints", "lock")

# What a training run that restarts reads from the bucket; it writes the rest.
RESTART_PATTERNS = (
    "config.json",
    "metrics.jsonl",
    "tokenizer/*",
    "benchmark/*.jsonl",
    "judged/*.jsonl",
    "pipeline/training.json",
)

# Without these files a folder is no pipeline folder. They are uploaded after its other files.
PIPELINE_MARKERS = (
    "pipeline/config.json",
    "pipeline/model_index.json",
    "pipeline/training.json",
)


def is_remote(name: str | Path | None) -> bool:
    """Whether a name is a URL such as gs://bucket/folder."""
    return isinstance(name, str) and "://" in name


def local_path(name: str) -> Path:
    """The local folder of a name: itself, or the mirror of a URL in the user's cache."""
    if not is_remote(name):
        return Path(name).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    url = name.rstrip("/")
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache / "ivid2vid_jax" / "remote" / f"{url.rpartition('/')[2]}-{digest}"


def fetch_folder(name: str) -> str:
    """Downloads a bucket folder and returns its local path; a local name is returned unchanged.

    Raises UserError if the bucket folder is empty.
    """
    if not is_remote(name):
        return name
    mirror = BucketMirror(name)
    if not mirror.fetch():
        raise UserError(f"{name}: there is nothing in this folder, or it cannot be read")
    return str(mirror.folder)


def list_folder(name: str | Path, folder: str) -> list[str]:
    """The names in a folder below `name`, a local folder or a URL; [] if there is none."""
    try:
        fs, root = fsspec.core.url_to_fs(str(name))
        return [path.rstrip("/").rpartition("/")[2] for path in fs.ls(f"{root}/{folder}", False)]
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def mirror_run(name: str, writes: bool) -> Iterator[Callable[[], None]]:
    """Mirrors a RUN folder: downloads what a restart needs, and uploads changed files at the end.

    Yields a function that uploads the changed files at once. It does nothing for a local folder.

    Args:
        name: a local folder or a URL.
        writes: whether this process uploads; true for the first process only.
    """
    if not is_remote(name):
        yield lambda: None
        return
    mirror = BucketMirror(name)
    mirror.fetch(RESTART_PATTERNS)
    push = mirror.push if writes else lambda: None
    try:
        yield push
    finally:
        push()


class BucketMirror:
    """A folder in a bucket and its local mirror.

    A JSON file beside the mirror, the index, holds for each file the bucket's version and the
    local size and modification time at the last transfer. It tells which files have changed.
    """

    def __init__(self, url: str):
        self.url, self.folder = url.rstrip("/"), local_path(url)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url}: cannot be reached ({error}); for gs:// {install_command('gcs')}"
            ) from error
        self.index_file = self.folder.with_name(f"{self.folder.name}.json")
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, patterns: Sequence[str] = ("*",)) -> int:
        """Downloads the files that differ from the bucket's; returns the number in the bucket.

        Only files whose relative path matches one of the patterns (fnmatch).
        """
        with self.locked_index() as index:
            with self.translate_errors("fetched"):
                self.fs.invalidate_cache()
                remote_paths = self.fs.find(self.root)
            names = {path: path.removeprefix(self.root).lstrip("/") for path in remote_paths}
            names = {
                path: name
                for path, name in names.items()
                if not is_excluded(name) and any(fnmatch(name, pattern) for pattern in patterns)
            }
            for path, name in names.items():
                version, file = self.fs.ukey(path), self.folder / name
                if index.get(name) == [version, *size_and_mtime(file)]:
                    continue
                log.info("fetching %s/%s", self.url, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                with self.translate_errors("fetched"), atomic_path(file) as temporary:
                    self.fs.get_file(path, str(temporary))
                index[name] = [version, *size_and_mtime(file)]
            return len(names)

    def push(self) -> None:
        """Uploads the files that have changed since the last transfer.

        While files of a pipeline folder are replaced it lacks its markers in the bucket: a reader
        finds the old pipeline, none or the new one, never a mixture.
        """
        with self.locked_index() as index:
            files = (path for path in self.folder.rglob("*") if path.is_file())
            names = sorted(str(file.relative_to(self.folder)) for file in files)
            changed = [name for name in names if self.is_changed(name, index)]
            if any(name.startswith("pipeline/") for name in changed):
                markers = [name for name in PIPELINE_MARKERS if name in names]
                self.remove(markers, index)
                changed = [name for name in changed if name not in markers] + markers
            for name in changed:
                self.upload(name, index)

    def is_changed(self, name: str, index: dict[str, list]) -> bool:
        """Whether a mirrored file has changed since the last transfer."""
        state = size_and_mtime(self.folder / name)
        return not is_excluded(name) and index.get(name, [None])[1:] != state

    def upload(self, name: str, index: dict[str, list]) -> None:
        """Uploads a file."""
        path, state = f"{self.root}/{name}", size_and_mtime(self.folder / name)
        with self.translate_errors("written"):
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(self.folder / name), path)
            self.fs.invalidate_cache()
            index[name] = [self.fs.ukey(path), *state]

    def remove(self, names: Sequence[str], index: dict[str, list]) -> None:
        """Removes files from the bucket, if they are there."""
        with self.translate_errors("written"):
            for name in names:
                index.pop(name, None)
                if self.fs.exists(f"{self.root}/{name}"):
                    self.fs.rm_file(f"{self.root}/{name}")
            self.fs.invalidate_cache()

    @contextlib.contextmanager
    def locked_index(self) -> Iterator[dict[str, list]]:
        """Yields name -> [bucket version, local size, local mtime], locked against other processes.

        Changes are saved when the block ends.
        """
        with file_lock(self.index_file, None, "a+") as file:
            file.seek(0)
            try:
                index = json.loads(file.read() or "{}")
            except ValueError:
                index = {}  # a killed process left a partial file: compare all files again
            try:
                yield index
            finally:
                file.truncate(0)
                file.write(json.dumps(index))

    @contextlib.contextmanager
    def translate_errors(self, participle: str) -> Iterator[None]:
        """Turns the errors of a bucket's library into UserError."""
        try:
            yield
        except Exception as error:  # each library has its own classes
            raise UserError(
                f"{self.url}: could not be {participle} ({type(error).__name__}: {error}); "
                "check the URL and the permissions of this account"
            ) from error


def is_excluded(name: str) -> bool:
    """Whether a relative path is not mirrored."""
    return name.partition("/")[0] in EXCLUDED or is_temporary(name)


def size_and_mtime(file: Path) -> list[int]:
    """[bytes, modification time in ns] of a file; [-1, -1] if it does not exist."""
    try:
        stat = file.stat()
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]
