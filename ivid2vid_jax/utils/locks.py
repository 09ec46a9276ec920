"""Exclusive file locks; the kernel releases them when a process ends, even if it is killed."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ivid2vid_jax.errors import UserError


@contextmanager
def file_lock(path: Path, if_locked: str | None, mode: str = "a") -> Iterator[IO[str]]:
    """Opens a file and holds an exclusive lock on it.

    Args:
        path: the file; created if it does not exist.
        if_locked: message of the UserError raised if another process holds the lock; None waits
            for the lock.
        mode: mode of `open`.
    """
    with path.open(mode) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if if_locked is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(if_locked) from error
        yield file
