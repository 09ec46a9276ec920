"""Which kind of temporal layers is best? Equal steps from the same image editor, 3 seeds.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/temporal_layers.py \
        --output runs/experiments/temporal_layers

The arm "conv and attention" equals the arm "none" of frame_difference.py: a copy of those runs can
be resumed. The result without temporal layers is the row "per frame" of the model card.

Hardware: 2 CPU cores. Time: 12 runs of 7 minutes on one core. Results: docs/experiments.md.
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
    question=(
        "Equal steps of new temporal layers on the same image editor: what their kind changes."
    ),
    arms={
        name: dataclasses.replace(
            shared["base"], net=NetConfig(temporal=kinds, reinit_temporal=True)
        )
        for name, kinds in KINDS.items()
    },
    **shared["protocol"],
)
