"""Your own triplets on a CPU: the embedded editor learns from clips, with all its layers.

    python -m ivid2vid_jax.prepare --data triplets.csv --size 64 --fps 8 --frames 8 \
        --validation 0.1 --output data/mine
    python -m ivid2vid_jax.train --config configs/own_triplets.py --data data/mine \
        --output runs/mine
    python -m ivid2vid_jax.evaluate --model runs/mine --data data/mine --output report

It shows whether your triplets can be learned before you rent an accelerator. The embedded editor
has only ever seen moving shapes; edits of real clips need larger weights, such as those of
configs/instruct_pix2pix_temporal.py.

Hardware: 2 CPU cores, or any GPU or TPU.
Time: 4.4 s a step on two CPU cores that other jobs used too. Quality: not measured.
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
    output="runs/mine",
    model="shapes-edit",
    data=("data/mine",),
    steps=500,
    loader=LoaderConfig(batch=8, frames=8, size=64),
    loss=LossConfig(x0_weighting=True),
    optim=OptimConfig(lr=3e-4, warmup=20, ema=0.99, trainable=("unet", "text_encoder")),
    checkpoint=CheckpointConfig(every=100),
    log=LogConfig(eval_every=100, sample_every=250, sample_steps=10),
)
