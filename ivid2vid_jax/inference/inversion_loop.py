"""The DDIM inversion loop over whole clips; the mathematics is in `diffusion/inversion.py`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from ivid2vid_jax.diffusion.inversion import inversion_steps, inversion_update
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.parallel.device_group import FRAMES_AXIS, DeviceGroup


class DDIMInversion:
    """Inverts latents to the noise they are sampled from; compiled once per shape."""

    def __init__(
        self, denoise: Callable, schedule: NoiseSchedule, devices: DeviceGroup | None = None
    ):
        self.schedule, self.devices = schedule, devices or DeviceGroup(1)
        self.update = self.devices.jit(
            partial(inversion_update, denoise, schedule.prediction_type), donate_argnums=1
        )

    def __call__(
        self, params: Any, latents: np.ndarray, text: Any, steps: int
    ) -> Iterator[np.ndarray | None]:
        """Yields None after each step, and the noise [T, h, w, C] (on the host) at the end.

        Args:
            params: the U-Net's parameters.
            latents: scaled latents [T, h, w, C] on the host.
            text: embedding [K, D], usually of the empty prompt.
            steps: number of inversion steps.
        """
        x = self.devices.put(np.asarray(latents, np.float32), FRAMES_AXIS)[None]
        for step in jax.device_put(inversion_steps(self.schedule, steps)):
            x = self.update(params, x, text[None], step)
            yield None
        yield jax.device_get(x[0])
