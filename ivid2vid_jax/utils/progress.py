"""A progress bar with an ETA."""

from collections.abc import Iterable, Iterator
from functools import cached_property

from tqdm import tqdm


class Progress:
    """A progress bar with an ETA on stderr, that can be called as `progress(done, total)`. It shows from its first item on."""

    def __init__(self, what: str, total: int | None = None):
        self.what, self.total = what, total

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if "bar" in vars(self):
            self.bar.close()

    @cached_property
    def bar(self) -> tqdm:
        return tqdm(desc=self.what, total=self.total, mininterval=0.5, dynamic_ncols=True)

    def __call__(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def wrap(self, items: Iterable) -> Iterator:
        """The items, each counted as it passes."""
        for item in items:
            self.bar.update()
            yield item
