"""The data engine's editors on the benchmark: Tune-A-Video and shared noise, on the very tasks of the editors that are told instructions.

They know a text-to-image net alone, so they are told what the source clip shows and what the edited one is to show: the true captions.
"""

from collections.abc import Callable, Iterable

import numpy as np

from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.evaluation.shapes_benchmark import Editor
from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import EDITORS, EditTask
from ivid2vid_jax.utils.errors import UserError


def engine_editors(
    base: Pipeline, config: SynthesisConfig, names: Iterable[str]
) -> dict[str, Editor]:
    """Of these names, with the settings of a recipe of the data engine."""
    return {
        name: editor(EDITORS[name](base, getattr(config, name), 1), config.seed) for name in names
    }


def editor(edit: Callable, seed: int) -> Editor:
    """What an editor of captions makes of a triplet's source; UserError where that is not finite."""

    def run(truth: Triplet) -> np.ndarray:
        made = edit([EditTask(truth.source, truth.source_caption, (truth.edited_caption,), seed)])[
            0
        ][0]
        if made is None:
            raise UserError(
                f"{truth.edited_caption!r}: the net gave numbers that are not finite; give other settings by --engine"
            )
        return made

    return run
