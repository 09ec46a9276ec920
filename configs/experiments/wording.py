"""Does it help to be told in many ways? A new kind of edit learned in one wording, in three, in the tested ones, in all; 3 seeds, equal steps.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/wording.py --output runs/experiments/wording

The image editor that all runs start from knows every wording of every kind of edit but of one kind: sepia, held out of all training. So the runs learn
sepia, with the other kinds mixed in that they may not be forgotten, all of them said in the arm's wordings; and sepia alone is judged, said as
"use the sepia style" and "show it in sepia style" (numbers 3 and 4 of shapes_words.PHRASINGS; "make it sepia" is 0).
Hardware: 2 CPU cores. Time: 12 runs of 6 minutes on one core. What came out: docs/experiments.md.
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
TESTED = (3, 4)
base = dataclasses.replace(
    DEFAULT,
    steps=300,
    checkpoint=CheckpointConfig(every=150, keep=1),
    log=LogConfig(eval_every=0, sample_every=0),
)


def told(*phrasings: int) -> TrainConfig:
    return dataclasses.replace(base, loader=dataclasses.replace(base.loader, phrasings=phrasings))


experiment = Experiment(
    question="Sepia learned in other wordings than it is asked for in: what the number of wordings changes.",
    arms={
        "one wording": told(0),
        "three wordings": told(0, 1, 2),
        "the tested wordings": told(*TESTED),
        "all wordings": told(),
    },
    against="the tested wordings",
    kinds=(UNSEEN_STYLE,),
    phrasings=TESTED,
    **shared["protocol"] | dict(count=40),
)
