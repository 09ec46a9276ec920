"""The data engine's editors (Tune-A-Video, shared noise) on the shapes benchmark.

They use a text-to-image net, so they receive the true captions of source and edit instead of the
instruction.
"""

from collections.abc import Callable, Iterable

import numpy as np

from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.shapes_benchmark import Editor
from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import EDITORS, EditTask


def engine_editors(
    base: Pipeline, config: SynthesisConfig, names: Iterable[str]
) -> dict[str, Editor]:
    """The editors of these names, with the settings of a data engine recipe."""
    return {
        name: editor(EDITORS[name](base, getattr(config, name), 1), config.seed) for name in names
    }


def editor(edit: Callable, seed: int) -> Editor:
    """Wraps an editor of the data engine; raises UserError if its output is not finite."""

    def run(truth: Triplet) -> np.ndarray:
        task = EditTask(truth.source, truth.source_caption, (truth.edited_caption,), seed)
        edited = edit([task])[0][0]
        if edited is None:
            raise UserError(
                f"{truth.edited_caption!r}: the net's output is not finite; try other settings "
                "with --engine"
            )
        return edited

    return run
