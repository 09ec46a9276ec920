"""Stage D of the embedded pipeline, second part: more of the harder kinds of edit.

    python -m ivid2vid_jax.train --config configs/embedded/edit_images_hard.py

The loss is weighted towards the noise levels at which an edit is decided (x0_weighting).

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 6,000 steps of 0.34 s.
Expected: 83% of 168 held-out edits pass; shape 75%, texture 8%, outline 42%, others 75% or more.
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
    output="runs/embedded/edit_images_hard",
    model="runs/embedded/edit_images",
    data=("data/embedded/images_hard",),
    steps=6000,
    net=NetConfig(temporal=()),
    loader=LoaderConfig(batch=32, frames=1, size=64, cached=True),
    loss=LossConfig(x0_weighting=True),
    optim=OptimConfig(lr=8e-4, warmup=100, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=4, sample_every=2000, samples=6),
)
