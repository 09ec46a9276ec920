"""Command lines: parsing with tyro, recipe files, errors as one line with exit code 2."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import logging
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from ivid2vid_jax.errors import UserError, check_types
from ivid2vid_jax.utils import help_text, signals

log = logging.getLogger(__name__)

# What tyro prints for a value of a wrong type, and the same in words.
BAD_VALUE = re.compile(
    r"Error parsing (--[\w.-]+): no type matching (.+?) could be instantiated from (\[.*?\])\."
)
KINDS = {"INT": "must be a whole number", "FLOAT": "must be a number"}
CONFIG_HELP = (
    "--config FILE reads a recipe, a Python file with `config = ...`, whose values are the "
    "defaults of the options below."
)


def main(
    args_class: Any,
    run: Callable[[Any], object],
    recipe: Callable[[Path], Any] | None = None,
    default: Any = None,
    renamed: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    common: Sequence[str] = (),
) -> None:
    """Parses the command line and runs the command.

    A UserError is printed as one line and exits with code 2, Ctrl-C with code 130; both without a
    traceback.

    Args:
        args_class: dataclass of the arguments, or a union of subcommands.
        run: the command; called with an instance of `args_class`.
        recipe: for commands that take `--config FILE`: reads the defaults from the file.
        default: the defaults of such a command without `--config`; None means `args_class()`.
        renamed: old -> new dotted names of options. Old names still work and log a warning.
        aliases: names of options in other tools -> ours; they work without a warning.
        common: options that --help shows, e.g. "--video"; --help-all shows all. () = all.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("ivid2vid_jax").setLevel(logging.INFO)
    with signals.reliable_interrupts(), errors_as_lines():
        argv = replace_options(sys.argv[1:], aliases or {}, warn=False)
        argv = replace_options(argv, renamed or {}, warn=True)
        options: dict[str, Any] = {"prog": program()}
        if recipe:
            path, argv = split_config(argv)
            options["default"] = recipe(path) if path else default or args_class()
            options["description"] = f"{inspect.getdoc(args_class)}\n\n{CONFIG_HELP}"
        if {"-h", "--help", "--help-all"} & set(argv):
            print_help(args_class, argv, common, options)
            return
        if dataclasses.is_dataclass(args_class):
            check_first_word(argv, common, recipe is not None)
        run(parse(args_class, argv, options))


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Exits with one line: with code 2 for a UserError, with 130 for a KeyboardInterrupt."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        message = f"interrupted; {(interrupted and str(error)) or 'finished files are complete'}"
        if signals.INTERRUPT.raised.is_set():
            # Any error may follow from it. Python's own end may crash while JAX still computes.
            signals.end_process(message)
        if not interrupted and not isinstance(error, UserError):
            raise
        print(message if interrupted else f"error: {error}", file=sys.stderr)
        sys.exit(signals.INTERRUPTED if interrupted else 2)


def check_first_word(argv: Sequence[str], common: Sequence[str], has_recipe: bool) -> None:
    """UserError that names the likely option for words that belong to none."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    if words:
        option = "--config" if has_recipe and words[0].endswith(".py") else (*common, "--OPTION")[0]
        text = shlex.join([" ".join(words)])
        raise UserError(f"{text} belongs to no option; did you mean {option} {text}?")


def parse(args_class: Any, argv: Sequence[str], options: dict[str, Any]) -> Any:
    """The arguments; UserError for a value that is no number or no known word."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(args_class, args=argv, **options)
    except SystemExit:
        text = " ".join(re.sub("[│╭╮╰╯─]", " ", printed.getvalue()).split())
        if match := BAD_VALUE.search(text):
            option, kind, values = match.groups()
            kind = KINDS.get(kind.removeprefix("{None}|"), kind.removeprefix("{None}|"))
            raise UserError(f"{option} {shlex.join(ast.literal_eval(values))}: {kind}") from None
        return tyro.cli(args_class, args=argv, **options)  # again, in the colours of a terminal


def program() -> str:
    """How the command was started: "ivid2vid edit" or "python -m ivid2vid_jax.edit"."""
    if sys.argv[0].startswith("ivid2vid "):
        return sys.argv[0]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def print_help(
    args_class: Any, argv: list[str], common: Sequence[str], options: dict[str, Any]
) -> None:
    """Prints the help of a command, or of its subcommand; the common options, or all of them."""
    words = [word if word != "--help-all" else "--help" for word in argv]
    text = help_text.captured_help(lambda: tyro.cli(args_class, args=words, **options))
    text = help_text.tidy(text)
    if common and "--help-all" not in argv:
        text = help_text.common_options(text, {"-h", *common})
        text += "\n--help-all shows all options.\n"
    print(help_text.printable(text), end="")


def replace_options(argv: list[str], names: Mapping[str, str], warn: bool) -> list[str]:
    """Replaces names of options (`--a.old`, `--a.old=1`, `--a.no-old`); warn: logs each."""
    flags = {}
    for old, new in names.items():
        for prefix in ("", "no-"):
            parts = [name.replace("_", "-").rpartition(".") for name in (old, new)]
            old_flag, new_flag = (f"--{head}{dot}{prefix}{tail}" for head, dot, tail in parts)
            old_flag_underscores = old_flag.replace("-", "_").replace("__", "--", 1)
            flags[old_flag] = flags[old_flag_underscores] = new_flag
    replaced = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if flag in flags:
            if warn:
                log.warning(
                    "%s is now called %s; the next release drops the old name", flag, flags[flag]
                )
            flag = flags[flag]
        replaced.append(flag + equals + value)
    return replaced


def split_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Returns the value of --config, and the other arguments."""
    for i, argument in enumerate(argv):
        if argument == "--config":
            if i + 1 == len(argv):
                raise UserError("--config needs the path of a recipe file")
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config=")), argv[:i] + argv[i + 1 :]
    return None, argv


def recipe_loader(cls: type) -> Callable[[Path], Any]:
    """Returns a function that reads `config`, an instance of `cls`, from a recipe file.

    The function raises UserError for a file that is missing, cannot be run, or defines no such
    config. The error suggests the nearest name for a misspelt file or field.
    """

    def read(path: Path) -> Any:
        if not path.is_file():
            raise UserError(f"--config {path}: no such file{suggest_file(path)}")
        try:
            config = runpy.run_path(str(path)).get("config")
        except TypeError as error:  # an unknown keyword
            raise UserError(f"--config {path}: {error}{suggest_field(str(error), cls)}") from error
        except Exception as error:
            raise UserError(
                f"--config {path}: cannot be run ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(config, cls):
            raise UserError(f"--config {path}: defines no `config = {cls.__name__}(...)`")
        try:
            check_types(config)
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from error
        return config

    return read


def suggest_file(path: Path) -> str:
    """Returns "; did you mean ...?" with the recipe of the most similar name, or ""."""
    names = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    matches = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {path.with_name(matches[0])}?" if matches else ""


def suggest_field(message: str, cls: type) -> str:
    """Returns "; did you mean ...?" for an error that quotes an unknown config field, else ""."""
    word = message.rpartition("'")[0].rpartition("'")[2]
    fields = {field.name for part in config_classes(cls) for field in dataclasses.fields(part)}
    matches = difflib.get_close_matches(word, sorted(fields), 1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def config_classes(cls: type) -> list[type]:
    """The class of a config and, recursively, those of its fields."""
    assert dataclasses.is_dataclass(cls)
    nested = [
        field.type
        for field in dataclasses.fields(cls)
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type)
    ]
    return [cls] + [part for config in nested for part in config_classes(config)]
