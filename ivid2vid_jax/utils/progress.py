"""A progress bar with an ETA, and a notice for what takes long without one."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Generic, TypeVar

from tqdm import tqdm

from ivid2vid_jax.utils.signals import raise_if_interrupted

T = TypeVar("T")


COMPILING = "compiling (or reading the compiled program)"
NOTICE_AFTER = 2.0  # seconds


@contextlib.contextmanager
def waiting(message: str, after: float = NOTICE_AFTER) -> Iterator[None]:
    """Prints a message to stderr if the block takes longer than `after` seconds.

    On a terminal the elapsed seconds are counted on the same line, which is erased at the end.
    """
    end, start = threading.Event(), time.monotonic()
    terminal = sys.stderr.isatty()

    def count() -> None:
        if end.wait(after):
            return
        if not terminal:
            print(f"{message} ...", file=sys.stderr, flush=True)
            return
        while True:
            seconds = time.monotonic() - start
            print(f"\r{message}: {seconds:.0f} s", end="", file=sys.stderr, flush=True)
            if end.wait(1):
                break
        print("\r" + " " * (len(message) + 12) + "\r", end="", file=sys.stderr, flush=True)

    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        yield
    finally:
        end.set()
        counter.join()


def duration(seconds: float) -> str:
    """A duration in words, e.g. "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """A progress bar with an ETA on stderr; it appears with its first item.

    An instance is a context manager and can be called as `progress(done, total)`. Ctrl-C ends the
    task at the next item at the latest.
    """

    def __init__(self, description: str, total: int | None = None):
        self.description, self.total = description, total
        self.compiles = False
        self.notice = contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        return self

    def expect_compilation(self) -> None:
        """The next item includes compilation: a notice says so, and the ETA leaves it out."""
        self.compiles = True
        self.notice.enter_context(waiting(COMPILING))

    def __exit__(self, *error: object) -> None:
        self.notice.close()
        if "bar" in vars(self):
            self.bar.close()

    @cached_property
    def bar(self) -> tqdm:
        """The bar of tqdm, made when it is first used."""
        return tqdm(desc=self.description, total=self.total, mininterval=0.5, dynamic_ncols=True)

    def __call__(self, done: int, total: int) -> None:
        """Sets the number of finished items and of all items."""
        raise_if_interrupted()
        self.notice.close()
        if self.compiles and "bar" not in vars(self):
            self.bar.initial = self.bar.n = done  # items that the ETA does not count
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def wrap(self, items: Iterable[T]) -> "CountedItems[T]":
        """The items, counted as they pass; iterated again, the bar starts again."""
        return CountedItems(self, items)


class CountedItems(Generic[T]):
    """Items that a progress bar counts. They can be iterated as often as the items themselves."""

    def __init__(self, progress: Progress, items: Iterable[T]):
        self.progress, self.items = progress, items

    def __iter__(self) -> Iterator[T]:
        if "bar" in vars(self.progress):
            self.progress.bar.reset()
        for item in self.items:
            raise_if_interrupted()
            self.progress.bar.update()
            yield item
