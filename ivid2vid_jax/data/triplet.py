"""The record that every source of training data yields."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Triplet:
    """A clip, an instruction and the edited clip.

    Attributes:
        id: unique within a dataset.
        source: [T, H, W, 3] uint8 RGB.
        edited: [T, H, W, 3] uint8 RGB, the same shape as `source`.
        instruction: what to change.
        source_caption: what the source clip shows; may be empty.
        edited_caption: what the edited clip shows; may be empty.
        edit_type: kind of edit; may be empty.
        fps: frames per second of both clips.
        mask: [T, H, W] bool, the pixels that the edit may change; None if it may change all.
        licence: SPDX name; may be empty.
        provenance: where the triplet comes from, enough to find or to make it again.
    """

    id: str
    source: np.ndarray
    edited: np.ndarray
    instruction: str
    source_caption: str
    edited_caption: str
    edit_type: str
    fps: float
    mask: np.ndarray | None
    licence: str
    provenance: str
