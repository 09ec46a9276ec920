"""Stage D of the embedded pipeline: editing of images by instruction, from stage C.

    python -m ivid2vid_jax.train --config configs/embedded/edit_images.py

8 input channels, no temporal layers yet.

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 14,000 steps of 0.34 s (the packaged weights: stopped at step 11,199).
Expected: v loss 0.052; 49% of 70 held-out edits of the 7 harder kinds pass.
More numbers: ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/embedded/edit_images",
    model="runs/embedded/text_to_image",
    data=("data/embedded/images",),
    steps=14000,
    net=NetConfig(temporal=()),
    loader=LoaderConfig(batch=32, frames=1, size=64, cached=True),
    optim=OptimConfig(lr=1e-3, warmup=200, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=4, sample_every=2000, samples=6),
)
