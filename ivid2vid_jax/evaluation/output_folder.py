"""OUTPUT/run.json binds an output folder to the settings its results were made with."""

import json
from collections.abc import Sequence
from pathlib import Path

from ivid2vid_jax.errors import UserError


def bind_to_settings(folder: Path, record: dict, mergeable: Sequence[str] = ()) -> dict:
    """Writes the record to folder/run.json, or checks that the folder was made with the same.

    Args:
        folder: created if it is missing.
        record: JSON-like settings.
        mergeable: entries of the record that are dicts, compared only on the keys that both runs
            have; run.json keeps the union.

    Returns:
        The record as run.json keeps it.

    Raises:
        UserError: the folder holds results of other settings, or something else.
    """
    file, record = folder / "run.json", json.loads(json.dumps(record))
    if file.is_file():
        recorded = json.loads(file.read_text())
        for name in mergeable:
            old, new = recorded.get(name, {}), record.get(name, {})
            recorded[name], record[name] = new | old, old | new
        if recorded != record:
            changed = [name for name in recorded | record if recorded.get(name) != record.get(name)]
            raise UserError(
                f"--output {folder}: holds results of another evaluation "
                f"({', '.join(changed)} differ); name a new folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"--output {folder}: is not empty and not the output of evaluate; name a new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2) + "\n"
    if not file.is_file() or file.read_text() != text:  # another process may be reading it
        file.write_text(text)
    return record
