"""The data engine on the shapes world: its captions and instructions, edits by shapes-base.

    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py \
        --output data/synthesised
    python -m ivid2vid_jax.synthesize --config configs/synthesis_shapes.py --output data/tuned \
        --editor tune_a_video --count 24

Hardware: 2 CPU cores.

Filter thresholds: found by `python -m ivid2vid_jax.synthesis.calibrate --count 100` on 50 clips,
each the largest that 95% of true edits pass, seen through the base's autoencoder. On 50 other clips
90.0% of the true edits pass, none of the unedited clips and 4.0% of the wrong edits: a precision of
95.7%. For another autoencoder, CLIP or world, run the command again.

Expected: of 400 edits by shared noise 18.8% are right, and 35.2% of the 182 that pass the filter;
of 48 edits by Tune-A-Video 4.2%, and 10.0% of the 20 that pass (docs/experiments.md).

Editor settings: the best of a search. DDIM inversion with the caption and a low guidance scale
preserve the rest of the clip. By shared noise, of 24 edits, two of each of twelve kinds, 8 were
right at strength 0.8 and 6 at 0.9. No setting of Tune-A-Video (learning rates 3e-5 to 2e-3, text
scales 1 to 3) got more than 1 of 8 right: shapes-base was trained on single frames and few words,
and generates a described scene from noise better than it edits one.
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
