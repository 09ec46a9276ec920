"""Stage A of the embedded pipeline, third part: only the decoder, with more outlines.

    python -m ivid2vid_jax.train --config configs/embedded/vae_decoder_lines.py

Outlines are what the decoder blurs most. The encoder is frozen, so latents stay valid.

Hardware: 2 CPU cores (measured: one core of an Intel Xeon).
Time: 1,000 steps of 0.7 to 0.9 s.
Expected: 99.2% of 520 true edits of the plain world pass the check after reconstruction; outlines
have a PSNR of 29.3 dB.
More numbers: ivid2vid_jax/assets/README.md.
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
