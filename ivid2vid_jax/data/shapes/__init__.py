"""The shapes world: clips of moving shapes, each with an instruction and the true edited clip.

    spec = sample_spec(seed=0, index=7)
    example = triplet(spec)
    check(example.source, edited_clip, spec).passed

A triplet is a pure function of seed and index.
"""

import hashlib

from ivid2vid_jax.data.shapes.checker import Limits, Verdict, check
from ivid2vid_jax.data.shapes.language import caption, edit_towards, instruction
from ivid2vid_jax.data.shapes.renderer import edit_mask, render
from ivid2vid_jax.data.shapes.scene import (
    ALL_KINDS,
    FREE_KINDS,
    KINDS,
    TEMPORAL_KINDS,
    UNSEEN_STYLE,
    Spec,
)
from ivid2vid_jax.data.shapes.scene_sampler import (
    SPLITS,
    WORLDS,
    allowed_phrasings,
    choices,
    held_out,
    sample_edit,
    sample_spec,
)
from ivid2vid_jax.data.triplet import Triplet

__all__ = [
    "ALL_KINDS",
    "FREE_KINDS",
    "KINDS",
    "SPLITS",
    "TEMPORAL_KINDS",
    "UNSEEN_STYLE",
    "WORLDS",
    "Limits",
    "Spec",
    "Verdict",
    "allowed_phrasings",
    "caption",
    "check",
    "choices",
    "edit_mask",
    "edit_towards",
    "held_out",
    "instruction",
    "render",
    "sample_edit",
    "sample_spec",
    "triplet",
]


def triplet(spec: Spec) -> Triplet:
    """Renders both clips; the provenance is the spec in JSON, for `Spec.from_json`."""
    text = spec.to_json()
    return Triplet(
        id=f"shapes-{hashlib.sha256(text.encode()).hexdigest()[:16]}",
        source=render(spec.scene, spec.size, spec.frames),
        edited=render(spec.edited, spec.size, spec.frames),
        instruction=instruction(spec.scene, spec.edit),
        source_caption=caption(spec.scene),
        edited_caption=caption(spec.edited),
        edit_type=spec.edit.kind,
        fps=spec.fps,
        mask=edit_mask(spec),
        licence="Apache-2.0",
        provenance=text,
    )
