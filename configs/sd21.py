"""As configs/sd15.py for Stable Diffusion 2.1: v-prediction, 1024-wide text, no min-SNR weighting.

    python -m ivid2vid_jax.train --config configs/sd21.py --data data/triplets --output runs/sd21

Prepare the data as in configs/sd15.py, with --cache-for stabilityai/stable-diffusion-2-1. The
temporal layers have the layout of diffusers' UNet3DConditionModel (heads of width 64), so the
result can be exported to that class.

Hardware: TPU v5e-16 or larger. Time and quality: not measured.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.parallel.mesh import MeshConfig
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/sd21",
    model="stabilityai/stable-diffusion-2-1",
    data=("data/triplets",),
    steps=10_000,
    loader=LoaderConfig(batch=64, frames=16, size=256, cached=True, workers=4),
    optim=OptimConfig(
        lr=1e-4, schedule="constant", warmup=500, b2=0.999, ema=0.9999, remat="block"
    ),
    mesh=MeshConfig(data=-1, fsdp=-1),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, sample_every=1000, sample_steps=50),
)
