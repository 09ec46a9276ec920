"""Does the frame-difference loss help, and in which form? Off against each mode, 3 seeds, equal steps from stage D's net.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/frame_difference.py --output runs/experiments/frame_difference

Hardware: 2 CPU cores. Time and numbers: see the model card, ivid2vid_jax/assets/README.md.
"""

import dataclasses

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.evaluation.experiment import Experiment
from ivid2vid_jax.training.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig

base = TrainConfig(
    model="runs/embedded/edit_images",
    data=("data/embedded/clips",),
    steps=400,
    loader=LoaderConfig(batch=8, frames=8, size=64, images=0.2, cached=True),
    loss=LossConfig(frame_difference="none"),
    optim=OptimConfig(lr=5e-4, warmup=50, ema=0.99),
    checkpoint=CheckpointConfig(every=200, keep=1),
    log=LogConfig(eval_every=400, eval_batches=8, sample_every=0),
)


def with_loss(**changes) -> TrainConfig:
    return dataclasses.replace(base, loss=LossConfig(**changes))


experiment = Experiment(
    question="Equal steps from the same image editor: what the frame-difference loss changes.",
    arms={
        "none": base,
        "match 0.25": with_loss(frame_difference="match", frame_weight=0.25),
        "match_x0 0.25": with_loss(frame_difference="match_x0", frame_weight=0.25),
        "smooth_x0 0.05": with_loss(frame_difference="smooth_x0", frame_weight=0.05),
    },
)
