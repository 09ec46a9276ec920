"""Stage C of the embedded pipeline: text to image, U-Net and text encoder.

    python -m ivid2vid_jax.train --config configs/embedded/text_to_image.py

It trains on cached latents of stage A's autoencoder.

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 5,000 steps of 0.34 s.
Expected: v loss 0.176.
More numbers: ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/embedded/text_to_image",
    model="runs/embedded/vae",
    task="text_to_image",
    data=("data/embedded/images",),
    steps=5000,
    loader=LoaderConfig(batch=32, frames=1, size=64, cached=True),
    optim=OptimConfig(lr=1e-3, warmup=200, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=4, sample_every=1000, samples=6),
)
