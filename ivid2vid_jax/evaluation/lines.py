"""Files of results, a line each, that a killed process may have left with half a line at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def whole(file: Path) -> list[str]:
    """The finished lines; none where there is no such file."""
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [line for line in lines if line.endswith("\n")]


@contextmanager
def appending(file: Path) -> Iterator[TextIO]:
    """The file, opened to add lines; what was cut off is taken away first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b") as found:
        found.seek(0)
        found.truncate(found.read().rfind(b"\n") + 1)
    with open(file, "a") as out:
        yield out
