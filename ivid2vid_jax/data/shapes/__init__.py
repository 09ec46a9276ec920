"""The shapes world: clips of moving shapes, each with an instruction and the true edited clip. A pure function of seed and index.

spec = sample_spec(seed=0, index=7)
example = triplet(spec)
check(example.source, an_editors_clip, spec).passed
"""

import hashlib

from ivid2vid_jax.data.shapes.checker import Limits, Verdict, check
from ivid2vid_jax.data.shapes.language import caption, edit_towards, instruction
from ivid2vid_jax.data.shapes.renderer import edit_mask, render
from ivid2vid_jax.data.shapes.scene import ALL_KINDS, KINDS, UNSEEN_STYLE, Spec
from ivid2vid_jax.data.shapes.scene_sampler import (
    SPLITS,
    WORLDS,
    held_out,
    sample_edit,
    sample_spec,
    sentences,
)
from ivid2vid_jax.data.triplet import Triplet

__all__ = [
    "ALL_KINDS",
    "KINDS",
    "SPLITS",
    "UNSEEN_STYLE",
    "WORLDS",
    "Limits",
    "Spec",
    "Verdict",
    "caption",
    "check",
    "edit_mask",
    "edit_towards",
    "held_out",
    "instruction",
    "render",
    "sample_edit",
    "sample_spec",
    "sentences",
    "triplet",
]


def triplet(spec: Spec) -> Triplet:
    """Draws both clips; the provenance is the spec itself, which `Spec.from_json` reads back."""
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
