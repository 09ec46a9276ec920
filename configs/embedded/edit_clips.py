"""Stage E of the embedded pipeline: stage D inflated and trained on clips with the frame-difference loss, images mixed in.

    python -m ivid2vid_jax.train --config configs/embedded/edit_clips.py

Hardware: 2 CPU cores. Time and numbers: see the model card, ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.training.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig

config = TrainConfig(
    output="runs/embedded/edit_clips",
    model="runs/embedded/edit_images_simple",
    data=("data/embedded/clips_simple",),
    steps=1800,
    loader=LoaderConfig(batch=8, frames=8, size=64, images=0.2, cached=True),
    loss=LossConfig(frame_difference="match", frame_weight=0.25, clean=True),
    optim=OptimConfig(lr=5e-4, warmup=100, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=250),
    log=LogConfig(eval_every=250, eval_batches=4, sample_every=1000, samples=6),
)
