"""Stage D of the embedded pipeline, third part: one object on a flat background.

    python -m ivid2vid_jax.train --config configs/embedded/edit_images_simple.py

Harder kinds of edit are more frequent.

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 4,500 steps of 0.36 s.
Expected: 91% of 168 held-out edits of single frames pass; outline 50%, texture 58%, others 92% or
more.
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
    output="runs/embedded/edit_images_simple",
    model="runs/embedded/edit_images_hard",
    data=("data/embedded/images_simple",),
    steps=4500,
    net=NetConfig(temporal=()),
    loader=LoaderConfig(batch=32, frames=1, size=64, cached=True),
    loss=LossConfig(x0_weighting=True),
    optim=OptimConfig(lr=8e-4, warmup=100, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=4, sample_every=2000, samples=6),
)
