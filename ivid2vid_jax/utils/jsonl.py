"""Files of results, a line each, that a killed process may have left with half a line at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def read_complete_lines(file: Path) -> list[str]:
    """The finished lines; none where there is no such file."""
    data = file.read_bytes() if file.is_file() else b""
    return data[: data.rfind(b"\n") + 1].decode().split("\n")[:-1]


def truncate_partial_line(file: Path) -> None:
    """Takes away a last line that was cut off."""
    data = file.read_bytes() if file.is_file() else b""
    if data and not data.endswith(b"\n"):
        os.truncate(file, data.rfind(b"\n") + 1)


@contextmanager
def open_append(file: Path) -> Iterator[TextIO]:
    """The file, mended and opened to add lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    truncate_partial_line(file)
    with open(file, "a") as out:
        yield out
