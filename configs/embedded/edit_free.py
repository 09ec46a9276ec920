"""The embedded editor of version 0.2: all kinds of edit in both worlds, temporal layers included.

    python -m ivid2vid_jax.train --config configs/embedded/edit_free.py

Continues from the editor of version 0.1 with the new autoencoder. All weights are trained on clips,
so that frames can agree on what a sentence leaves open, and take from each other what one of them
does not show.

Hardware: one NVIDIA H200, 14 CPU cores that render the clips.
Time: 9,000 steps of 0.049 s; 75 s to compile.
State: stopped after 5,776 steps, when the machine had to be given back, with the loss still
falling (v loss 0.066). These weights are in configs/embedded/weights/edit_free and are not in the
package: they pass fewer edits than the editor of version 0.1. README.md beside this file has the
numbers.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.shapes import FREE_KINDS, TEMPORAL_KINDS
from ivid2vid_jax.data.shapes.scene import CROWDED_KINDS
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    TrainConfig,
)

# Harder kinds are more frequent.
KINDS = (
    *CROWDED_KINDS,
    *("shape", "shape", "outline", "outline", "remove", "remove", "texture", "pixelated"),
    *FREE_KINDS,
    *("free-shape", "free-texture"),
    *TEMPORAL_KINDS,
    *("repair-frames", "remove-bar"),
)

config = TrainConfig(
    output="runs/embedded/edit_free",
    model="shapes-edit",
    vae="runs/embedded/vae_wide",
    data=("shapes", "shapes-crowded"),
    steps=9000,
    net=NetConfig(temporal=("conv", "attention")),
    loader=LoaderConfig(batch=32, frames=8, size=64, kinds=KINDS, weights=(3, 2), workers=14),
    loss=LossConfig(frame_difference="match", frame_weight=0.25, x0_weighting=True),
    optim=OptimConfig(lr=1e-3, warmup=200, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=1000),
    log=LogConfig(eval_every=1000, eval_batches=4, sample_every=0),
)
