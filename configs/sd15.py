"""The paper-shaped run: Stable Diffusion 1.5 inflated to an editor, all of the U-Net trained, 16 frames at 256x256.

    python -m ivid2vid_jax.prepare --data triplets.csv --size 256 --frames 16 --codec mp4 --output data/triplets
    python -m ivid2vid_jax.prepare --data data/triplets --cache-for stable-diffusion-v1-5/stable-diffusion-v1-5 --size 256 --frames 16
    python -m ivid2vid_jax.train --config configs/sd15.py --data data/triplets --output runs/sd15

Hardware: meant for TPU v5e-16 or larger (parameters, Adam, EMA and gradients are 20 bytes a parameter, split by fsdp).
Time and quality: not measured here (no TPU, no SD weights within reach). The paper's own settings are not public; lr and dropout are
InstructPix2Pix's.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.parallel.mesh import MeshConfig
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/sd15",
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    data=("data/triplets",),
    steps=10_000,
    loader=LoaderConfig(batch=64, frames=16, size=256, cached=True, workers=4),
    loss=LossConfig(snr_gamma=5.0),
    optim=OptimConfig(
        lr=1e-4, schedule="constant", warmup=500, b2=0.999, ema=0.9999, remat="block"
    ),
    mesh=MeshConfig(data=1, fsdp=-1),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, sample_every=1000, sample_steps=50),
)
