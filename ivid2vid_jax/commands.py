"""What every command shares: parsing, one-line errors with exit code 2, progress with an ETA, the log."""

import importlib.metadata
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import tyro
from tqdm import tqdm

from ivid2vid_jax.errors import UserError

PACKAGES = ("ivid2vid_jax", "jax", "flax", "numpy", "av")


def main(args_class: type, run: Callable, recipe: Callable | None = None) -> None:
    """Parses the command line into `args_class` and runs it. A user's mistake is one line and exit code 2, no traceback.

    recipe: for commands that take `--config FILE`: makes the defaults of a file's path.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("ivid2vid_jax").setLevel(logging.INFO)
    try:
        if recipe:
            path, argv = split_config(sys.argv[1:])
            args = tyro.cli(args_class, args=argv, default=recipe(path) if path else args_class())
        else:
            args = tyro.cli(args_class)
        run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, nothing is half written", file=sys.stderr)
        sys.exit(130)


def split_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    """The value of --config, and the other arguments."""
    for i, word in enumerate(argv):
        if word == "--config":
            if i + 1 == len(argv):
                raise UserError("--config needs the path of a recipe file")
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if word.startswith("--config="):
            return Path(word.removeprefix("--config=")), argv[:i] + argv[i + 1 :]
    return None, argv


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

    def over(self, items: Iterable) -> Iterator:
        """The items, each counted as it passes."""
        for item in items:
            self.bar.update()
            yield item


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
