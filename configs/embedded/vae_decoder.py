"""Stage A of the embedded pipeline, second part: the decoder alone, on both worlds. The encoder stays, and with it every latent and every net on latents.

    python -m ivid2vid_jax.train --config configs/embedded/vae_decoder.py

Hardware: 2 CPU cores. Time and numbers: see the model card, ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.training.config import (
    AutoencoderLossConfig,
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/embedded/vae_decoder",
    model="runs/embedded/vae",
    task="autoencoder",
    data=("shapes", "shapes-crowded"),
    steps=1500,
    loader=LoaderConfig(batch=16, frames=1, size=64),
    autoencoder=AutoencoderLossConfig(kl=0.0),
    optim=OptimConfig(
        lr=1e-3, warmup=100, trainable=(r"^vae/(decoder|post_quant_conv)/",), weight_decay=0.0
    ),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=8, sample_every=0),
)
