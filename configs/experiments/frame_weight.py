"""How much frame-difference loss? `match` at five weights, 3 seeds, equal steps from stage D's net.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/frame_weight.py --output runs/experiments/frame_weight

Hardware: 2 CPU cores. Time: 18 runs of about 4 minutes, an estimate. Not run yet: no number is known.
"""

import runpy
from pathlib import Path

from ivid2vid_jax.evaluation.experiment import Experiment

shared = runpy.run_path(str(Path(__file__).with_name("frame_difference.py")))
base, with_loss = shared["base"], shared["with_loss"]

experiment = Experiment(
    question="Equal steps from the same image editor: what the weight of the frame-difference loss changes.",
    arms={"0": base} | {f"{weight:g}": with_loss(frame_difference="match", frame_weight=weight) for weight in (0.05, 0.1, 0.25, 0.5, 1.0)},
    **shared["protocol"],
)
