"""Parameters by name: "unet/down_blocks.0/resnets.0/conv1/kernel". Which of them are trained is a matter of regular expressions."""

import re
from typing import Any

import flax

from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.utils.errors import UserError


def is_temporal(name: str) -> bool:
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


def flatten(params: dict[str, Any]) -> dict[str, Any]:
    """{"unet": tree, ...} -> {"unet/.../kernel": leaf, ...}."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


BUFFERS = ("pe",)  # leaves that no optimiser changes: tables


def trainable(names, patterns: tuple[str, ...]) -> set[str]:
    """The names that any of the patterns picks: a preset's name, or a regular expression searched for in the parameter's name.

    Raises UserError for a pattern that is no regular expression or that picks nothing.
    """
    chosen = set()
    for pattern in patterns:
        try:
            picks = PRESETS.get(pattern) or re.compile(pattern).search
        except re.error as error:
            raise UserError(
                f"--optim.trainable {pattern!r} is neither one of {', '.join(PRESETS)} nor a regular expression ({error})"
            ) from error
        picked = {name for name in names if picks(name) and name.rpartition("/")[2] not in BUFFERS}
        if not picked:
            some = ", ".join(sorted(names)[:: max(1, len(names) // 3)][:3])
            raise UserError(
                f"--optim.trainable {pattern!r} picks no parameter; choose from {', '.join(PRESETS)}, or match names such as {some}"
            )
        chosen |= picked
    return chosen
