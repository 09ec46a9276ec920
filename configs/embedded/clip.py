"""Stage B of the embedded pipeline: a small CLIP on images of the shapes world, from scratch.

    python -m ivid2vid_jax.train --config configs/embedded/clip.py

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 1,500 steps of 0.75 s.
Expected: contrastive loss 0.079; 96% of captions are retrieved among 128 images.
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
    output="runs/embedded/clip",
    task="clip",
    data=("data/embedded/images",),
    steps=1500,
    loader=LoaderConfig(batch=128, frames=1, size=64),
    optim=OptimConfig(lr=1e-3, warmup=200, b2=0.98, trainable=("clip",), weight_decay=0.1),
    checkpoint=CheckpointConfig(every=250),
    log=LogConfig(eval_every=250, eval_batches=4, sample_every=0),
)
