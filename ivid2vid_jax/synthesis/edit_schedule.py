"""The steps of sampling and of DDIM inversion that an editor's config asks for.

Its `strength` is the share of the way to noise from which sampling starts, `sampling` and
`inversion` are the numbers of steps for the whole way.
"""

from typing import Protocol

import numpy as np

from ivid2vid_jax.diffusion.inversion import InversionStep, inversion_steps
from ivid2vid_jax.diffusion.samplers import SamplerTable, make_sampler
from ivid2vid_jax.diffusion.schedule import NoiseSchedule


class ScheduleConfig(Protocol):
    """What both editors' configs have in common."""

    @property
    def sampling(self) -> int: ...  # noqa: D102
    @property
    def inversion(self) -> int: ...  # noqa: D102
    @property
    def strength(self) -> float: ...  # noqa: D102


def sampling_steps(config: ScheduleConfig) -> int:
    """Number of sampling steps from the config's strength on."""
    return max(1, round(config.strength * config.sampling))


def sampling_schedule(schedule: NoiseSchedule, config: ScheduleConfig) -> tuple[SamplerTable, int]:
    """The table of all DDIM steps, and the index of the step at which sampling starts."""
    return make_sampler("ddim", schedule, config.sampling), config.sampling - sampling_steps(config)


def inversion_schedule(schedule: NoiseSchedule, config: ScheduleConfig) -> list[InversionStep]:
    """The inversion steps, which end at exactly the noise level at which sampling starts.

    With another level, the noise in the latents would not match the timestep that the U-Net is
    given. If inversion and sampling have the same number of steps, these are sampling's own steps;
    otherwise the last one is as long as necessary.
    """
    if not config.inversion:
        return []
    table, first = sampling_schedule(schedule, config)
    t, alpha, sigma = (
        np.asarray(column)[first]
        for column in (table.steps.t, table.steps.alpha, table.steps.sigma)
    )
    all_steps = inversion_steps(schedule, config.inversion)
    steps = [step for step in all_steps if step.t <= t]
    if steps and steps[-1].t == t:
        return steps
    if steps:
        level = steps[-1].alpha_after, steps[-1].sigma_after
    else:
        level = all_steps[0].alpha, all_steps[0].sigma
    return [*steps, InversionStep(t, *level, alpha, sigma)]
