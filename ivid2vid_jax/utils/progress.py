"""A progress bar with an ETA."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TypeVar

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

    def wrap(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and counts them."""
        for item in items:
            self.bar.update()
            yield item
