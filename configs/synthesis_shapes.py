"""The data engine on the shapes world, whole: its own captions and sentences, edits by shapes-base, thresholds of shapes-clip.

    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py --output data/synthesised
    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py --output data/tuned --editor tune_a_video --count 24

The thresholds are those that `python -m ivid2vid_jax.synthesis.calibrate --count 100` found on 50 clips, each the largest that 95% of true edits pass,
seen through the base's autoencoder. Of 50 other clips they passed 90.0% of the true edits, none of the unedited and 4.0% of the wrong ones: a precision of
95.7%. Edits that the base makes are worse than these: of 400 by shared noise 18.8% are right, of the 182 that the filter keeps 35.2%; of 48 by
Tune-A-Video 4.2%, of the 20 kept 10.0% (docs/experiments.md). Another autoencoder, CLIP or world wants the command again.
The editors' settings were searched for: noise inverted by the caption and little guidance keep the rest of the clip. By shared noise, of 24 edits in two of
each of twelve kinds 8 were right at strength 0.8, 6 at 0.9. No setting of Tune-A-Video (learning rates 3e-5 to 2e-3, text scales 1 to 3) got more than 1 of 8
right: shapes-base was trained on single frames and few words, and draws a described scene from noise better than it redraws one.
Hardware: 2 CPU cores.
"""

from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.filter import FilterConfig

config = SynthesisConfig(
    count=200,
    seed=21,
    shared_noise=SharedNoiseConfig(sampling=20, inversion=20, text_scale=1.25, strength=0.8),
    tune_a_video=TuneAVideoConfig(
        steps=100,
        lr=1e-3,
        inversion=25,
        sampling=25,
        inversion_prompt="caption",
        text_scale=2.0,
        strength=0.9,
    ),
    filter=FilterConfig(
        model="shapes-clip", image=-0.122, text=0.566, direction=0.558, consistency=0.949
    ),
)
