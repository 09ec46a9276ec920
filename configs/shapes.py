"""The default of `python -m ivid2vid_jax.train`: the embedded editor learns sepia, an unseen style.

    python -m ivid2vid_jax.train --config configs/shapes.py --output runs/shapes

Hardware: 2 CPU cores, or any GPU or TPU.
Time: 4.5 minutes on two cores of an Intel Xeon (300 steps of 0.46 s, compilation, benchmark).
Expected: 20 of 28 held-out sepia edits pass after training, 0 of 28 before. More numbers are in the
model card, ivid2vid_jax/assets/README.md.
"""

from ivid2vid_jax.training.config import DEFAULT

config = DEFAULT
