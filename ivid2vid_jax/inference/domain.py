"""Warnings for clips and instructions that the embedded models were not trained for."""

import functools
import re
import string
from collections.abc import Iterable

import numpy as np

from ivid2vid_jax import assets
from ivid2vid_jax.data.shapes import language, scene
from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.video.fit import ResizePlan

# The embedded autoencoder reconstructs clips of the shapes world at 28 dB or more, and two clips
# of people and cars at 23 dB.
MIN_PSNR = 26.0
MAX_NAMED = 5  # unknown words in a warning
ADVICE = (
    "The embedded model knows only moving shapes (docs: Editing). For real clips: "
    "--model timbrooks/instruct-pix2pix"
)


def domain_warnings(pipe: Pipeline, frames: Iterable[np.ndarray], instruction: str) -> list[str]:
    """What an embedded model does not know; empty for other models.

    Args:
        pipe: the pipeline.
        frames: [H, W, 3] uint8, of the clip; the first is used, if the model is embedded.
        instruction: what to change.
    """
    if not assets.is_embedded(pipe.folder.path):
        return []
    reasons = []
    if words := unknown_words(instruction):
        reasons.append(f"unknown words: {', '.join(words[:MAX_NAMED])}")
    if reconstruction_psnr(pipe, next(iter(frames))) < MIN_PSNR:
        reasons.append("the clip is none of simple shapes on a background")
    return [f"{'; '.join(reasons)}. {ADVICE}"] if reasons else []


def unknown_words(instruction: str) -> list[str]:
    """The words of an instruction that the shapes world's sentences never use."""
    return [word for word in words_of(instruction) if word not in vocabulary()]


@functools.cache
def vocabulary() -> frozenset[str]:
    """All words of the shapes world's instructions."""
    templates = [text for texts in language.PHRASINGS.values() for text in texts]
    literal = [part for text in templates for part, *_ in string.Formatter().parse(text)]
    values = [value for options in scene.VALUES.values() for value in options]
    texts = [*literal, *values, *language.LOOKS.values(), *language.WHERE.values()]
    return frozenset(word for text in texts for word in words_of(text))


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[^\W\d_]+", text.lower())


def reconstruction_psnr(pipe: Pipeline, frame: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of a frame after the autoencoder, at the model's size."""
    side = (pipe.folder.unet.sample_size or 64) * pipe.folder.vae.downscale
    small = ResizePlan.plan(frame.shape[:2], side, pipe.factor).apply(frame)
    error = pipe.reconstruct(small[None])[0].astype(np.float32) - small
    return float(10 * np.log10(255**2 / max(np.square(error).mean(), 1e-3)))
