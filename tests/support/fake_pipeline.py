"""A fake pipeline and clips of noise, for tests of the app."""

from fractions import Fraction

import numpy as np

from ivid2vid_jax.video.write import write_clip


class NegativePipeline:
    """A fake pipeline whose edit is the photographic negative."""

    factor = 16

    def __init__(self, folder):
        self.folder = folder

    def edit_frames(self, frames, instruction, settings, fit, progress):
        source = list(frames)
        for done in range(settings.steps):
            progress(done + 1, settings.steps)
        return [fit.restore(255 - fit.apply(frame)) for frame in source]


def write_noise(path, frames=6, size=(32, 48), rate=8) -> str:
    """Writes a clip of noise; size: (height, width)."""
    pixels = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8)
    write_clip(path, iter(pixels), [Fraction(i, rate) for i in range(frames)], Fraction(rate))
    return str(path)
