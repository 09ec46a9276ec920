"""Does the inter-frames consistency loss help, and in which form and weight?

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/frame_difference.py \
        --output runs/experiments/frame_difference

Prepare the clips and their latents first:

    python -m ivid2vid_jax.prepare --data shapes --seed 9 --count 2000 \
        --output data/experiments/clips
    python -m ivid2vid_jax.prepare --data data/experiments/clips --cache-for shapes-edit \
        --frames 8 --size 64

Arms: no such loss, and its modes and weights; equal steps from the same image editor, 3 seeds. Only
temporal layers are trained, as in stage E of the embedded pipeline (configs/embedded). All other
weights of shapes-edit are those of stage D, so new temporal layers on it repeat stage E.

Hardware: 2 CPU cores. Time: 18 runs of 7 minutes on one core. Results: docs/experiments.md.
"""

import dataclasses

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.experiments.experiment import Experiment
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    TrainConfig,
)

base = TrainConfig(
    model="shapes-edit",
    data=("data/experiments/clips",),
    steps=300,
    net=NetConfig(reinit_temporal=True),
    loader=LoaderConfig(batch=4, frames=8, size=64, cached=True),
    loss=LossConfig(frame_difference="none", x0_weighting=True),
    optim=OptimConfig(lr=1e-3, warmup=50, ema=0.99, trainable=("temporal",)),
    checkpoint=CheckpointConfig(every=150, keep=1),
    log=LogConfig(eval_every=300, eval_batches=8, sample_every=0),
)
# The evaluation: 3 clips of each kind of edit, 39 held-out clips per run.
protocol = dict(count=3, settings=EditSettings(steps=10, text_scale=1.5, video_scale=1.5))


def with_loss(**changes) -> TrainConfig:
    return dataclasses.replace(base, loss=LossConfig(x0_weighting=True, **changes))


experiment = Experiment(
    question=(
        "Equal steps of new temporal layers on the same image editor: what the frame-difference "
        "loss changes."
    ),
    arms={
        "none": base,
        "match 0.25": with_loss(frame_difference="match", frame_weight=0.25),
        "match_x0 0.25": with_loss(frame_difference="match_x0", frame_weight=0.25),
        "smooth_x0 0.05": with_loss(frame_difference="smooth_x0", frame_weight=0.05),
        "match 0.1": with_loss(frame_difference="match", frame_weight=0.1),
        "match 1": with_loss(frame_difference="match", frame_weight=1.0),
    },
    **protocol,
)
