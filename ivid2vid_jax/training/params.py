"""Parameters by name, such as "unet/down_blocks.0/resnets.0/conv1/kernel", and their selection."""

import re
from collections.abc import Collection
from typing import Any

import flax

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models.temporal import is_temporal_key


def is_temporal(name: str) -> bool:
    """Whether a parameter belongs to a temporal layer of the U-Net."""
    return is_temporal_key(name.replace("/", "."))


PRESETS = {
    "unet": lambda name: name.startswith("unet/"),
    "temporal": lambda name: name.startswith("unet/") and is_temporal(name),
    "spatial": lambda name: name.startswith("unet/") and not is_temporal(name),
    "attention": lambda name: name.startswith("unet/") and re.search(r"/attn\d", name) is not None,
    "text_encoder": lambda name: name.startswith("text_encoder/"),
    "vae": lambda name: name.startswith("vae/"),
    "clip": lambda name: name.startswith("clip/"),
}

# Leaves that are constant tables and never trained: positional encodings of motion modules.
BUFFERS = ("pe",)


def flatten(params: dict[str, Any]) -> dict[str, Any]:
    """{"unet": tree, ...} -> {"unet/.../kernel": leaf, ...}."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def trainable(names: Collection[str], patterns: tuple[str, ...]) -> set[str]:
    """The names that match any pattern: a preset, or a regular expression (`re.search`).

    Raises UserError for a pattern that is not a regular expression or matches nothing.
    """
    selected = set()
    for pattern in patterns:
        try:
            matches = PRESETS.get(pattern) or re.compile(pattern).search
        except re.error as error:
            raise UserError(
                f"--optim.trainable {pattern!r} is neither one of {', '.join(PRESETS)} "
                f"nor a regular expression ({error})"
            ) from error
        matched = {
            name for name in names if matches(name) and name.rpartition("/")[2] not in BUFFERS
        }
        if not matched:
            examples = ", ".join(sorted(names)[:: max(1, len(names) // 3)][:3])
            raise UserError(
                f"--optim.trainable {pattern!r} matches no parameter; choose from "
                f"{', '.join(PRESETS)}, or a regular expression for names such as {examples}"
            )
        selected |= matched
    return selected
