"""Reading and writing of JSON files."""

import json
from pathlib import Path
from typing import Any

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.atomic import atomic_write_text


def read_json(path: Path) -> dict:
    """Reads a JSON object; UserError if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented by two spaces, atomically."""
    atomic_write_text(path, json.dumps(value, indent=2) + "\n")
