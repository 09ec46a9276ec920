"""Which temporal layers? Each kind against none, 3 seeds, equal steps from stage D's net.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/temporal_layers.py --output runs/experiments/temporal_layers

Hardware: 2 CPU cores. Time: 15 runs of about 4 minutes, an estimate. Not run yet: no number is known.
"""

import dataclasses
import runpy
from pathlib import Path

from ivid2vid_jax.evaluation.experiment import Experiment
from ivid2vid_jax.training.config import NetConfig

shared = runpy.run_path(str(Path(__file__).with_name("frame_difference.py")))
KINDS = {"none": (), "conv": ("conv",), "attention": ("attention",), "conv and attention": ("conv", "attention"), "motion": ("motion",)}

experiment = Experiment(
    question="Equal steps from the same image editor: what the kind of temporal layer changes.",
    arms={name: dataclasses.replace(shared["base"], net=NetConfig(temporal=kinds)) for name, kinds in KINDS.items()},
    **shared["protocol"],
)
