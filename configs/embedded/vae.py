"""Stage A of the embedded pipeline: the autoencoder of the shapes world, from scratch.

    python -m ivid2vid_jax.train --config configs/embedded/vae.py

Hardware: 2 CPU cores (measured: AMD EPYC).
Time: 8,000 steps of 0.37 s.
Expected: mean absolute error 0.019; 97.9% of 140 true edits pass the check after reconstruction, at
30.6 dB.
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
    output="runs/embedded/vae",
    task="autoencoder",
    data=("shapes-crowded",),
    steps=8000,
    loader=LoaderConfig(batch=16, frames=1, size=64),
    autoencoder=AutoencoderLossConfig(kl=5e-3),
    optim=OptimConfig(lr=2e-3, warmup=200, trainable=("vae",), weight_decay=0.0),
    checkpoint=CheckpointConfig(every=500),
    log=LogConfig(eval_every=500, eval_batches=8, sample_every=2000, samples=2),
)
