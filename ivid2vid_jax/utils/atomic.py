"""Atomic writes of files and folders."""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY, OLD = ".tmp-", ".old-"  # beginnings of names
_counter = itertools.count()
# What a process that ends in the middle of a block leaves behind.
_temporary_paths: set[Path] = set()


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Removes the file or folder at the end of the block, or when Ctrl-C ends the process."""
    _temporary_paths.add(path)
    try:
        yield path
    finally:
        remove(path)
        _temporary_paths.discard(path)


def remove_temporary_paths() -> None:
    """Removes all temporary files and folders; only for a process that ends."""
    for path in list(_temporary_paths):
        remove(path)


def remove(path: Path) -> None:
    """Removes a file or a folder; what cannot be removed is left."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same folder, renamed to `path` when the block succeeds.

    The block writes a file or makes a folder there. If it raises, the temporary file or folder is
    removed and `path` stays as it was. An existing file is replaced; an existing folder only if
    it is empty or `replace` is set. The temporary name keeps the suffix of `path`.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{next(_counter)}{path.suffix}")
    with temporary_path(temporary):
        yield temporary
        if path.is_dir() and replace and temporary.is_dir():
            old = path.with_name(f"{OLD}{os.getpid()}-{next(_counter)}")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            if path.is_dir():
                path.rmdir()  # raises OSError if it is not empty
            temporary.replace(path)


def recover_replaced(path: Path) -> None:
    """Removes what killed uses of `atomic_path` left beside `path`.

    A folder that was about to be replaced is put back. No other process may write there.
    """
    old = sorted(path.parent.glob(f"{OLD}*"))
    if old and not path.exists():
        old.pop().rename(path)
    for left in (*old, *path.parent.glob(f"{TEMPORARY}*")):
        remove(left)


def is_temporary(path: str | Path) -> bool:
    """Whether `atomic_path` has made a file or a folder that it lies in, and has not renamed it."""
    return any(part.startswith((TEMPORARY, OLD)) for part in Path(path).parts)


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file and flushes it to disk before it is renamed to `path`."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
