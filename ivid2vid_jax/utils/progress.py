"""A progress bar with an ETA."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """A progress bar with an ETA on stderr; it appears with its first item.

    An instance is a context manager and can be called as `progress(done, total)`.
    """

    def __init__(self, description: str, total: int | None = None):
        self.description, self.total = description, total

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if "bar" in vars(self):
            self.bar.close()

    @cached_property
    def bar(self) -> tqdm:
        """The bar of tqdm, made when it is first used."""
        return tqdm(desc=self.description, total=self.total, mininterval=0.5, dynamic_ncols=True)

    def __call__(self, done: int, total: int) -> None:
        """Sets the number of finished items and of all items."""
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
            self.progress.bar.update()
            yield item
