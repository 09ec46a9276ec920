"""The paper's data engine: BLIP captions, a chat model, Tune-A-Video on Stable Diffusion 1.5, CLIP.

    python -m ivid2vid_jax.synthesize --config configs/synthesis_sd15.py --videos DIR --output DIR \
        --estimate

`--estimate` only prints the expected cost; run without it to write the data. `--chat.base-url` sets
a local chat server; without it OpenAI's API is used, with the key in OPENAI_API_KEY.

Hardware: GPUs or TPU chips, one clip per device at a time. Time and quality: not measured.
"""

from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import TuneAVideoConfig
from ivid2vid_jax.synthesis.filter import FilterConfig

config = SynthesisConfig(
    videos="videos",
    instructions="chat",
    per_clip=4,
    base="stable-diffusion-v1-5/stable-diffusion-v1-5",
    editor="tune_a_video",
    clips=ClipsConfig(frames=16, fps=8.0, size=256, least=256),
    captions=CaptionsConfig(source="blip"),
    tune_a_video=TuneAVideoConfig(steps=500, text_scale=12.5),
    filter=FilterConfig(model="openai/clip-vit-large-patch14"),
    codec="mp4",
)
