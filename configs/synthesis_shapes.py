"""The data engine on the shapes world, whole: its own captions and sentences, edits by shapes-base, thresholds of shapes-clip.

    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py --output data/synthesised
    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py --output data/tuned --editor tune_a_video --count 24

Hardware: 2 CPU cores. Time, an estimate: 2 s an edit by shared noise, 40 s a clip by Tune-A-Video. What came of it: see the experiments.
"""

from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.filter import FilterConfig

config = SynthesisConfig(
    count=200,
    seed=21,
    shared_noise=SharedNoiseConfig(sampling=20, text_scale=7.5),
    tune_a_video=TuneAVideoConfig(steps=100, inversion=25, sampling=25, text_scale=7.5),
    filter=FilterConfig(model="shapes-clip"),
)
