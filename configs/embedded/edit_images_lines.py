"""Stage F of the embedded pipeline: thin outlines, which failed most, on still images, a third of which are outlines. Temporal layers stay stage E's.

    python -m ivid2vid_jax.train --config configs/embedded/edit_images_lines.py

Hardware: 2 CPU cores. Time and numbers: see the model card, ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/embedded/edit_images_lines",
    model="runs/embedded/edit_clips",
    data=("data/embedded/images_lines",),
    steps=3000,
    loader=LoaderConfig(batch=32, frames=1, size=64, cached=True),
    loss=LossConfig(x0_weighting=True),
    optim=OptimConfig(lr=6e-4, warmup=100, trainable=("spatial", "text_encoder")),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=4, sample_every=0),
)
