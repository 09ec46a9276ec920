"""The data engine on the shapes world, whole: its own captions and sentences, edits by shapes-base, thresholds of shapes-clip.

    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py --output data/synthesised
    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py --output data/tuned --editor tune_a_video --count 24

The thresholds are those that `python -m ivid2vid_jax.synthesis.calibrate --count 100` found with the base's decoder of before `vae_decoder_lines.py`, on
50 clips, each the largest that 95% of true edits pass, seen through that autoencoder. Of 50 other clips they passed 90.0% of the true edits, with a
precision of 93.8% among true, unedited and wrong ones. Edits that the base makes are worse than these; what the thresholds are worth for them is in
statistics.json. Another autoencoder, CLIP or world wants the command again. Text scales and Tune-A-Video's steps have not been searched for.
Hardware: 2 CPU cores. Time, estimates from the time of a training step: 2 s an edit by shared noise, 20 s a clip by Tune-A-Video.
"""

from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.filter import FilterConfig

config = SynthesisConfig(
    count=200,
    seed=21,
    shared_noise=SharedNoiseConfig(sampling=20, text_scale=7.5),
    tune_a_video=TuneAVideoConfig(steps=100, inversion=25, sampling=25, text_scale=7.5),
    filter=FilterConfig(model="shapes-clip", image=-0.11, text=0.566, direction=0.557, consistency=0.948),
)
