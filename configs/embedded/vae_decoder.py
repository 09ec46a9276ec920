"""Stage A of the embedded pipeline, second part: only the decoder, on both worlds.

    python -m ivid2vid_jax.train --config configs/embedded/vae_decoder.py

The encoder is frozen, so latents, and all networks trained on them, stay valid.

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 1,500 steps of 0.32 s.
Expected: 100% of 120 true edits of the plain world pass the check after reconstruction, at 33 dB.
More numbers: ivid2vid_jax/assets/README.md.
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
