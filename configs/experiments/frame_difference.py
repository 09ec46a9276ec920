"""Does the frame-difference loss help, and in which form? Off against each mode, 3 seeds, equal steps from stage D's net.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/frame_difference.py --output runs/experiments/frame_difference

Before it: stage D and the cache of data/embedded/clips_simple (configs/embedded/README.md).
Hardware: 2 CPU cores. Time: 12 runs of about 4 minutes, an estimate. Not run yet: no number is known.
"""

import dataclasses

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.evaluation.experiment import Experiment
from ivid2vid_jax.pipeline import EditSettings
from ivid2vid_jax.training.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig

base = TrainConfig(
    model="runs/embedded/edit_images_simple",
    data=("data/embedded/clips_simple",),
    steps=300,
    loader=LoaderConfig(batch=4, frames=8, size=64, images=0.2, cached=True),
    loss=LossConfig(frame_difference="none", clean=True),
    optim=OptimConfig(lr=5e-4, warmup=50, ema=0.99),
    checkpoint=CheckpointConfig(every=150, keep=1),
    log=LogConfig(eval_every=300, eval_batches=8, sample_every=0),
)
protocol = dict(count=3, settings=EditSettings(steps=10, text_scale=1.5, video_scale=1.5))  # of judging: 42 held-out clips a run


def with_loss(**changes) -> TrainConfig:
    return dataclasses.replace(base, loss=LossConfig(clean=True, **changes))


experiment = Experiment(
    question="Equal steps from the same image editor: what the frame-difference loss changes.",
    arms={
        "none": base,
        "match 0.25": with_loss(frame_difference="match", frame_weight=0.25),
        "match_x0 0.25": with_loss(frame_difference="match_x0", frame_weight=0.25),
        "smooth_x0 0.05": with_loss(frame_difference="smooth_x0", frame_weight=0.05),
    },
    **protocol,
)
