"""Which temporal layers? Each kind, 3 seeds, equal steps from the same image editor. What it does without any: "per frame" in the model card's table.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/temporal_layers.py --output runs/experiments/temporal_layers

"conv and attention" is the arm "none" of frame_difference.py: a copy of its runs is gone on with.

Hardware: 2 CPU cores. Time: 12 runs of 7 minutes on one core. What came out: docs/experiments.md.
"""

import dataclasses
import runpy
from pathlib import Path

from ivid2vid_jax.experiments.experiment import Experiment
from ivid2vid_jax.training.config import NetConfig

shared = runpy.run_path(str(Path(__file__).with_name("frame_difference.py")))
KINDS = {
    "conv": ("conv",),
    "attention": ("attention",),
    "conv and attention": ("conv", "attention"),
    "motion": ("motion",),
}

experiment = Experiment(
    question="Equal steps of new temporal layers on the same image editor: what their kind changes.",
    arms={
        name: dataclasses.replace(
            shared["base"], net=NetConfig(temporal=kinds, reinit_temporal=True)
        )
        for name, kinds in KINDS.items()
    },
    **shared["protocol"],
)
