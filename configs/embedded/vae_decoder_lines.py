"""Stage A of the embedded pipeline, third part: the decoder alone again, on more outlines, whose lines it blurs most. Every latent stays what it is.

    python -m ivid2vid_jax.train --config configs/embedded/vae_decoder_lines.py

Hardware: 2 CPU cores. Time and numbers: see the model card, ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.shapes import KINDS
from ivid2vid_jax.training.config import (
    AutoencoderLossConfig,
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/embedded/vae_decoder_lines",
    model="runs/embedded/vae_decoder",
    task="autoencoder",
    data=("shapes", "shapes-crowded"),
    steps=1000,
    loader=LoaderConfig(batch=16, frames=1, size=64, kinds=("outline",) * 8 + KINDS),
    autoencoder=AutoencoderLossConfig(kl=0.0),
    optim=OptimConfig(
        lr=1e-3, warmup=100, trainable=(r"^vae/(decoder|post_quant_conv)/",), weight_decay=0.0
    ),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=8, sample_every=0),
)
