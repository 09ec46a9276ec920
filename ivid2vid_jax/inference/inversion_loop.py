"""DDIM inversion of whole clips, step by step; the mathematics is `diffusion/inversion.py`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from ivid2vid_jax.diffusion.inversion import inversion_steps, inversion_update
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.parallel.device_group import FRAMES_AXIS, DeviceGroup


class DDIMInversion:
    """invert(params, latents, text, steps) yields None after each step and the noise at the end; compiled once for equal shapes."""

    def __init__(
        self, denoise: Callable, schedule: NoiseSchedule, spread: DeviceGroup | None = None
    ):
        self.schedule, self.spread = schedule, spread or DeviceGroup(1)
        self.rise = self.spread.jit(
            partial(inversion_update, denoise, schedule.prediction_type), donate_argnums=1
        )

    def __call__(
        self, params: Any, latents: np.ndarray, text, steps: int
    ) -> Iterator[np.ndarray | None]:
        """latents: scaled, [T, h, w, C] on the host; text: [K, D], of the empty prompt as a rule. The noise is [T, h, w, C] on the host."""
        x = self.spread.put(np.asarray(latents, np.float32), FRAMES_AXIS)[None]
        for step in jax.device_put(inversion_steps(self.schedule, steps)):
            x = self.rise(params, x, text[None], step)
            yield None
        yield jax.device_get(x[0])
