"""The paper's setting: Stable Diffusion 1.5 inflated to an editor, the whole U-Net trained.

    python -m ivid2vid_jax.prepare --data triplets.csv --size 256 --frames 16 --codec mp4 \
        --output data/triplets
    python -m ivid2vid_jax.prepare --data data/triplets --size 256 --frames 16 \
        --cache-for stable-diffusion-v1-5/stable-diffusion-v1-5
    python -m ivid2vid_jax.train --config configs/sd15.py --data data/triplets --output runs/sd15

Clips of 16 frames at 256x256. The paper's hyper-parameters are not public; learning rate and
conditioning dropout are those of InstructPix2Pix.

Hardware: TPU v5e-16 or larger. Parameters, Adam's state, EMA and gradients take 20 bytes per
parameter, sharded by fsdp. Time and quality: not measured.
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
    mesh=MeshConfig(data=-1, fsdp=-1),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, sample_every=1000, sample_steps=50),
)
