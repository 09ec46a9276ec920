"""InstructPix2Pix for clips: its 8-channel U-Net frozen in bfloat16, only temporal layers trained.

    python -m ivid2vid_jax.prepare --data triplets.csv --size 256 --frames 16 --codec mp4 \
        --output data/triplets
    python -m ivid2vid_jax.train --config configs/instruct_pix2pix_temporal.py \
        --data data/triplets --output runs/ip2p

The frozen weights keep the edits that InstructPix2Pix knows; the temporal layers learn consistency
between frames.

Hardware: 4 TPU chips of 16 GB, or one GPU of 40 GB. Time and quality: not measured.
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
    output="runs/ip2p",
    model="timbrooks/instruct-pix2pix",
    data=("data/triplets",),
    steps=5_000,
    loader=LoaderConfig(batch=16, frames=16, size=256, workers=4),
    loss=LossConfig(snr_gamma=5.0),
    optim=OptimConfig(
        lr=1e-4,
        schedule="constant",
        warmup=200,
        b2=0.999,
        ema=0.9995,
        trainable=("temporal",),
        frozen_dtype="bfloat16",
        remat="block",
    ),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, sample_every=500, sample_steps=50),
)
