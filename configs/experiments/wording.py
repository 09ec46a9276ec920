"""Does training on several wordings help? A new kind of edit, in one, three or all wordings.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/wording.py \
        --output runs/experiments/wording

The image editor that all runs start from knows every wording of every kind of edit except sepia,
which is held out of all its training. The runs learn sepia for equal steps, with 3 seeds. The other
kinds are mixed in, so that they are not forgotten; all use the wordings of the arm. Only sepia is
evaluated, as "use the sepia style" and "show it in sepia style" (numbers 3 and 4 of
PHRASINGS in data/shapes/language.py; "make it sepia" is 0).

Hardware: 2 CPU cores. Time: 12 runs of 6 minutes on one core. Results: docs/experiments.md.
"""

import dataclasses
import runpy
from pathlib import Path

from ivid2vid_jax.data.shapes import UNSEEN_STYLE
from ivid2vid_jax.experiments.experiment import Experiment
from ivid2vid_jax.training.config import (
    DEFAULT,
    CheckpointConfig,
    LogConfig,
    TrainConfig,
)

shared = runpy.run_path(str(Path(__file__).with_name("frame_difference.py")))
TESTED = (3, 4)  # wordings of the evaluation
base = dataclasses.replace(
    DEFAULT,
    steps=300,
    checkpoint=CheckpointConfig(every=150, keep=1),
    log=LogConfig(eval_every=0, sample_every=0),
)


def with_wordings(*phrasings: int) -> TrainConfig:
    return dataclasses.replace(base, loader=dataclasses.replace(base.loader, phrasings=phrasings))


experiment = Experiment(
    question=(
        "Sepia learned in other wordings than it is asked for in: what the number of wordings "
        "changes."
    ),
    arms={
        "one wording": with_wordings(0),
        "three wordings": with_wordings(0, 1, 2),
        "the tested wordings": with_wordings(*TESTED),
        "all wordings": with_wordings(),
    },
    against="the tested wordings",
    kinds=(UNSEEN_STYLE,),
    phrasings=TESTED,
    **shared["protocol"] | dict(count=40),
)
