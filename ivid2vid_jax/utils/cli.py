"""What every command shares: parsing, one-line errors with exit code 2, progress with an ETA, the log."""

import dataclasses
import difflib
import logging
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro

from ivid2vid_jax.utils.errors import UserError, check_types

log = logging.getLogger(__name__)


def main(
    args_class: type,
    run: Callable,
    recipe: Callable | None = None,
    default: Any = None,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Parses the command line into `args_class` and runs it. A user's mistake is one line and exit code 2, no traceback.

    recipe: for commands that take `--config FILE`: makes the defaults of a file's path. default: those without one (None: args_class()).
    renamed: old -> new dotted names of options; the old ones still work and log a warning.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("ivid2vid_jax").setLevel(logging.INFO)
    try:
        words = with_new_names(sys.argv[1:], renamed or {})
        if recipe:
            path, argv = split_config(words)
            args = tyro.cli(
                args_class, args=argv, default=recipe(path) if path else default or args_class()
            )
        else:
            args = tyro.cli(args_class, args=words)
        run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, nothing is half written", file=sys.stderr)
        sys.exit(130)


def with_new_names(argv: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Replaces options that were renamed (`--a.old`, `--a.old=1`, `--a.no-old`) by their new names and logs each."""
    flags = {}
    for old, new in renamed.items():
        for prefix in ("", "no-"):
            names = [name.replace("_", "-").rpartition(".") for name in (old, new)]
            before, after = (f"--{head}{dot}{prefix}{tail}" for head, dot, tail in names)
            flags[before] = flags[before.replace("-", "_").replace("__", "--", 1)] = after
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag in flags:
            log.warning(
                "%s is now called %s; the old name goes with the next release", flag, flags[flag]
            )
            flag = flags[flag]
        words.append(flag + equals + value)
    return words


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


def recipe_loader(cls: type) -> Callable[[Path], Any]:
    """What reads the `config`, one of `cls`, of a recipe file; it raises UserError for a file that is none, naming the nearest right key where
    one is misspelt.
    """

    def read(path: Path):
        if not path.is_file():
            near = difflib.get_close_matches(
                path.name,
                [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else [],
                1,
            )
            raise UserError(
                f"--config {path}: no such file{f'; did you mean {path.with_name(near[0])}?' if near else ''}"
            )
        try:
            config = runpy.run_path(str(path)).get("config")
        except TypeError as error:  # an unknown keyword
            raise UserError(f"--config {path}: {error}{suggest(str(error), cls)}") from error
        except Exception as error:
            raise UserError(
                f"--config {path}: cannot be run ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(config, cls):
            raise UserError(f"--config {path}: says no `config = {cls.__name__}(...)`")
        try:
            check_types(config)
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from error
        return config

    return read


def suggest(message: str, cls: type) -> str:
    """ "; did you mean ...?" for an error that quotes an unknown keyword of a config's class or of its parts'."""
    word = message.rpartition("'")[0].rpartition("'")[2]
    known = {field.name for each in config_classes(cls) for field in dataclasses.fields(each)}
    near = difflib.get_close_matches(word, sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def config_classes(cls: type) -> list[type]:
    """A config's class and those of its parts."""
    parts = [
        field.type for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.type)
    ]
    return [cls] + [each for part in parts for each in config_classes(part)]
