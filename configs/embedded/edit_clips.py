"""Stage E of the embedded pipeline: stage D inflated, its temporal layers trained on clips.

    python -m ivid2vid_jax.train --config configs/embedded/edit_clips.py

The loss includes the inter-frames consistency loss; a tenth of the batches are images. All other
weights stay those of stage D: training them too did not give a better editor (model card).

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 1,600 steps of 0.83 s.
Expected: v loss 0.037, frame-difference loss 0.062.
More numbers: ivid2vid_jax/assets/README.md.
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
    output="runs/embedded/edit_clips",
    model="runs/embedded/edit_images_plain",
    data=("data/embedded/clips_plain",),
    steps=1600,
    loader=LoaderConfig(batch=8, frames=8, size=64, images=0.1, cached=True),
    loss=LossConfig(frame_difference="match", frame_weight=0.25, x0_weighting=True),
    optim=OptimConfig(lr=1e-3, warmup=100, trainable=("temporal",)),
    checkpoint=CheckpointConfig(every=200),
    log=LogConfig(eval_every=400, eval_batches=4, sample_every=800, samples=6),
)
