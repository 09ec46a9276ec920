"""One chip of 16 GB, as Colab lends it (TPU v5e-1): temporal layers on frozen InstructPix2Pix weights, 8 frames at 256x256.

    python -m ivid2vid_jax.train --config configs/colab_v5e1.py --data data/triplets --output /content/drive/MyDrive/ivid2vid

Hardware: that chip. The TPU compiler's word on the whole program, `plan --config configs/colab_v5e1.py --topology v5e:1x1 --full`: 15.0 GiB of
16 (docs/tpu-plan.md). With an EMA of the weights it was 16.8, so the learning rate's fall to zero has to do what averaging would. Drive keeps the
checkpoints: run the same cell again after a disconnect.
Time and quality: not measured here.
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
    output="runs/colab",
    model="timbrooks/instruct-pix2pix",
    data=("data/triplets",),
    steps=2_000,
    loader=LoaderConfig(batch=4, frames=8, size=256),
    loss=LossConfig(snr_gamma=5.0),
    optim=OptimConfig(
        lr=1e-4,
        schedule="cosine",
        warmup=100,
        b2=0.999,
        ema=0.0,
        accumulation=4,
        trainable=("temporal",),
        frozen_dtype="bfloat16",
        remat="block",
    ),
    checkpoint=CheckpointConfig(every=200, keep=1),
    log=LogConfig(eval_every=200, eval_batches=2, sample_every=200, samples=2, sample_steps=20),
)
