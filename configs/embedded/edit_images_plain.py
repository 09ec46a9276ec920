"""Stage D of the embedded pipeline, last part: the world without textures.

    python -m ivid2vid_jax.train --config configs/embedded/edit_images_plain.py

The kinds of edit that failed most are more frequent: thin outlines, and removal of one of two
objects.

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 5,000 steps of 0.37 s.
Expected: 96% of 312 held-out edits of single frames pass; outline 67%, others 96% or more.
More numbers: ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/embedded/edit_images_plain",
    model="runs/embedded/edit_images_simple",
    data=("data/embedded/images_plain",),
    steps=5000,
    net=NetConfig(temporal=()),
    loader=LoaderConfig(batch=32, frames=1, size=64, cached=True),
    loss=LossConfig(x0_weighting=True),
    optim=OptimConfig(lr=8e-4, warmup=100, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=4, sample_every=2500, samples=6),
)
