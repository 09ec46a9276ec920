"""The autoencoder of version 0.2: twice as wide, for both worlds and all kinds of edit.

    python -m ivid2vid_jax.train --config configs/embedded/vae_wide.py

Hardware: one NVIDIA H200, 14 CPU cores that render the images.
Time: 6,000 steps of 0.021 s; 60 s to compile.
Expected: true edits after reconstruction have 36.4 dB, outlines of objects are 0.13 pixels off
(stopped at step 5,166; the autoencoder of version 0.1: 33.7 dB).
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.shapes import FREE_KINDS, TEMPORAL_KINDS
from ivid2vid_jax.data.shapes.scene import CROWDED_KINDS
from ivid2vid_jax.models import AutoencoderConfig
from ivid2vid_jax.training.config import (
    AutoencoderLossConfig,
    CheckpointConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/embedded/vae_wide",
    task="autoencoder",
    data=("shapes", "shapes-crowded"),
    steps=6000,
    net=NetConfig(
        vae=AutoencoderConfig(
            block_out_channels=(32, 64, 96),
            layers_per_block=1,
            norm_num_groups=8,
            scaling_factor=1.0,
            sample_size=64,
            force_upcast=False,
        )
    ),
    loader=LoaderConfig(
        batch=32,
        frames=4,
        size=64,
        kinds=(*CROWDED_KINDS, *FREE_KINDS, *TEMPORAL_KINDS, *("outline",) * 4),
        workers=14,
    ),
    autoencoder=AutoencoderLossConfig(kl=5e-4, gradient=1.0),
    optim=OptimConfig(lr=2e-3, warmup=200, trainable=("vae",), weight_decay=0.0),
    checkpoint=CheckpointConfig(every=1000),
    log=LogConfig(eval_every=1000, eval_batches=4, sample_every=0),
)
