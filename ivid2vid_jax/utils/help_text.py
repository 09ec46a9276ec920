"""The help of a command: tyro's, without noise, and cut to the common options."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Collection

OPTION = re.compile(r"^│ (--?[\w.-]+)")
NO_DEFAULT = re.compile(r"\(default:[ │\n]+(None|False|''|)\)")
OPTIONAL = re.compile(r"\{None\}\|(\{?\[.*?\.\.\.\]\]\}?|\S+)")
TOP, BOTTOM = "╭", "╰"


def captured_help(show: Callable[[], object]) -> str:
    """What a function prints before it exits."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        show()
    printed.seek(0)
    return printed.read()


def printable(text: str) -> str:
    """The text, with boxes of ASCII where stdout cannot show others."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(str.maketrans("│─╭╮╰╯├┤", "|-++++++"))
    return text


def tidy(text: str) -> str:
    """Help without "(default: None)", its like and "{None}|"; lines keep their width."""
    # also where the hint is broken over two lines of a box
    text = re.sub(NO_DEFAULT, lambda match: re.sub(r"[^│\n]", " ", match[0]), text)
    lines = []
    for tidied in text.splitlines():
        tidied = re.sub(
            r"\{None\}\|(\{?\[.*?\.\.\.\]\]\}?|\S+)", lambda match: match[1] + " " * 7, tidied
        )
        if tidied.strip("│ ") or "│" not in tidied:
            lines.append(tidied)
    return "\n".join(lines) + "\n"


def common_options(text: str, names: Collection[str]) -> str:
    """Help that shows only the options of these names, all in one box, and the text around it.

    names: option names with their dashes, e.g. "--video".
    """
    kept: list[str] = []
    bottom, inside, shown = "", False, False
    for line in text.splitlines():
        if line.startswith(TOP):
            inside, shown = True, False
            if not bottom:
                kept.append(line)
        elif inside and line.startswith(BOTTOM):
            bottom, inside = line, False
        elif inside:
            if option := OPTION.match(line):
                shown = option[1] in names
            if shown:
                kept.append(line)
        elif not bottom:
            kept.append(line)
    return "\n".join([*kept, bottom]) + "\n"
