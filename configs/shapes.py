"""The shapes world: what `python -m ivid2vid_jax.train` does without arguments, spelt out.

    python -m ivid2vid_jax.train --config configs/shapes.py --output runs/shapes

Hardware: 2 CPU cores (about 3 s a step of 16 clips x 8 frames x 64x64; a minute of compilation first), or any GPU or TPU.
Number to expect: the validation noise loss falls; see README for what was measured.
"""

from ivid2vid_jax.training.config import TrainConfig

config = TrainConfig()
