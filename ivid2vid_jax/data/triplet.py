"""The record that every source of training data yields."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Triplet:
    """A clip, an instruction and the clip as the instruction wants it.

    source, edited: [T, H, W, 3] uint8 RGB, the same size. mask: [T, H, W] bool, the pixels that the edit may change; None where it
    may change all of them. fps: frames per second. licence: SPDX name. provenance: where it came from, enough to find or make it again.
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
