"""Fingerprints of items: hashes of everything that decides an item's result."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import file_sha256

# Fields of configs that have been renamed -> the names under which they are hashed, those of 0.1:
# the fingerprints of existing folders must not change.
HASHED_NAMES = {"near_duplicate_bits": "alike"}


def fingerprint(*parts: Any) -> str:
    """A hash, 16 hexadecimal digits, of values that JSON can express."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def hashed_settings(config: Any) -> dict:
    """A config dataclass as the dict that goes into fingerprints, with the field names of 0.1."""
    return dataclasses.asdict(
        config,
        dict_factory=lambda items: {HASHED_NAMES.get(name, name): value for name, value in items},
    )


def hashed_weights(model: str) -> str | dict[str, str]:
    """The content that stands for a model: its name or, for a folder, its files' hashes."""
    if not Path(model).expanduser().is_dir():
        return model
    return {
        file.name: file_sha256(file)
        for file in sorted(hub.resolve_model(model).iterdir())
        if file.is_file()
    }
