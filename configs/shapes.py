"""What `python -m ivid2vid_jax.train` does without arguments: the embedded editor learns sepia, a kind of edit held out of its training.

    python -m ivid2vid_jax.train --config configs/shapes.py --output runs/shapes

Hardware: 2 CPU cores, or any GPU or TPU. Time and numbers: see the model card, ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.training.config import DEFAULT

config = DEFAULT
