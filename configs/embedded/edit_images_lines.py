"""Stage F of the embedded pipeline: thin outlines, which failed most, on still images.

    python -m ivid2vid_jax.train --config configs/embedded/edit_images_lines.py

A third of the images are edits to outlines. Temporal layers stay those of stage E.

Hardware: 2 CPU cores (measured: one core of an Intel Xeon).
Time: 3,000 steps of 0.9 to 1.1 s.
Expected: v loss 0.034.
More numbers: ivid2vid_jax/assets/README.md.
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
