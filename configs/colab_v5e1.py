"""For one 16 GB TPU v5e chip, as on Colab: temporal layers on frozen InstructPix2Pix weights.

    python -m ivid2vid_jax.train --config configs/colab_v5e1.py --data data/triplets \
        --output /content/drive/MyDrive/ivid2vid

Clips of 8 frames at 256x256. Checkpoints go to Google Drive: after a disconnect, run the same cell
again to resume.

Hardware: TPU v5e-1. Memory: 14.5 GiB of 16 (compiler estimate, by `python -m ivid2vid_jax.plan
--config configs/colab_v5e1.py --topology v5e:1x1 --full`, see docs/tpu-plan.md). An EMA of the
weights does not fit (16.8 GiB); instead the learning rate decays to zero. `--optim.ema 0.9999
--optim.offload ema` keeps one in host memory: the sum of layers is then 13.2 GiB, as without an
EMA; not proven by a compilation of the whole step.
Time and quality: not measured.
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
