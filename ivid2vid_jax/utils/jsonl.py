"""Text files with one result per line. A killed process may leave a partial last line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def read_complete_lines(file: Path) -> list[str]:
    """The lines that end in a newline; an empty list if the file does not exist."""
    data = file.read_bytes() if file.is_file() else b""
    return data[: data.rfind(b"\n") + 1].decode().split("\n")[:-1]


def truncate_partial_line(file: Path) -> None:
    """Removes a last line that does not end in a newline."""
    data = file.read_bytes() if file.is_file() else b""
    if data and not data.endswith(b"\n"):
        os.truncate(file, data.rfind(b"\n") + 1)


@contextmanager
def open_append(file: Path) -> Iterator[TextIO]:
    """Opens a file to append lines, after its partial last line has been removed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    truncate_partial_line(file)
    with file.open("a") as lines:
        yield lines
