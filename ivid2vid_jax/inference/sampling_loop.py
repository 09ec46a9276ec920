"""The sampling loop: one clip at once, or a long clip through overlapping windows.

All a sampler knows of the net is `denoise(params, x_t, t, cond)` of `diffusion/denoiser.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.diffusion.guidance import combine_branches
from ivid2vid_jax.diffusion.samplers import (
    SamplerStep,
    SamplerTable,
    frame_noise,
    predicted_x0,
    sampler_steps,
    update,
)
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.device_group import FRAMES_AXIS, WINDOWS_AXIS, DeviceGroup


class Guidance(NamedTuple):
    """The branches of one edit: text [K, L, D], video [K] (1 keeps the source clip, 0 drops it), weights [K], rescale []."""

    text: jax.Array
    video: jax.Array
    weights: jax.Array
    rescale: jax.Array


class NoiseSource(NamedTuple):
    """Where a step's noise comes from: a key, and the share that all frames have in common; see `samplers.frame_noise`."""

    key: jax.Array
    shared: jax.Array | float = 0.0


class SamplerState(NamedTuple):
    """Latents and the previous step's clean prediction, both [T, h, w, C] float32."""

    x: jax.Array
    x0: jax.Array


def guided_prediction(
    denoise: Callable, params: Any, x, source, step: SamplerStep, guidance: Guidance
):
    """Guided predictions for windows of latents x and source [G, T, h, w, C]: all branches of all windows as one batch."""
    G, K = x.shape[0], guidance.text.shape[0]

    def of_branches(window):  # [G, ...] -> [G*K, ...]
        return jnp.broadcast_to(window[:, None], (G, K, *window.shape[1:])).reshape(
            G * K, *window.shape[1:]
        )

    kept = jnp.tile(guidance.video, G).reshape(G * K, 1, 1, 1, 1)
    text = jnp.broadcast_to(guidance.text[None], (G, *guidance.text.shape)).reshape(
        G * K, *guidance.text.shape[1:]
    )
    predictions = denoise(
        params,
        of_branches(x),
        jnp.broadcast_to(step.t, (G * K,)),
        Condition(text, of_branches(source) * kept),
    )
    return jax.vmap(combine_branches, (0, None, None))(
        predictions.reshape(G, K, *predictions.shape[1:]), guidance.weights, guidance.rescale
    )


def sampler_update(
    state: SamplerState,
    prediction,
    frames,
    noise: NoiseSource,
    step: SamplerStep,
    prediction_type: str,
) -> SamplerState:
    """One sampler step from a guided prediction; frames: int32 [T], the frames' numbers in the whole clip."""
    x0 = predicted_x0(state.x, prediction, step, prediction_type)
    fresh = frame_noise(noise.key, frames, state.x.shape[1:], noise.shared)
    return SamplerState(update(state.x, x0, state.x0, fresh, step), x0)


def full_clip_step(
    denoise: Callable,
    prediction_type: str,
    params: Any,
    state: SamplerState,
    source,
    frames,
    noise: NoiseSource,
    step: SamplerStep,
    guidance: Guidance,
) -> SamplerState:
    """One sampler step of a clip that is seen at once: its guided prediction, and the advance by it. source: [T, h, w, C]."""
    prediction = guided_prediction(denoise, params, state.x[None], source[None], step, guidance)[0]
    return sampler_update(state, prediction, frames, noise, step, prediction_type)


class SamplingLoop:
    """Compiled steps around one `denoise`; they are kept, so equal shapes never compile twice. spread: the devices that share the work."""

    def __init__(self, denoise: Callable, prediction_type: str, spread: DeviceGroup | None = None):
        self.spread = spread = spread or DeviceGroup(1)
        self.guided = spread.jit(partial(guided_prediction, denoise), WINDOWS_AXIS)
        self.advance = spread.jit(
            partial(sampler_update, prediction_type=prediction_type), donate_argnums=0
        )
        self.start = spread.jit(
            lambda noise, frames, scale, like: (
                frame_noise(noise.key, frames, like.shape[1:], noise.shared) * scale
            )
        )
        self.whole = spread.jit(partial(full_clip_step, denoise, prediction_type), donate_argnums=1)

    def __call__(
        self,
        params: Any,
        source: np.ndarray,
        guidance: Sequence[Guidance],
        table: SamplerTable,
        seed: int,
        windows: list[slice],
        noise: np.ndarray | None = None,
        shared: float = 0.0,
    ) -> Iterator[np.ndarray | None]:
        """Yields None after each window of each step, and the final latents [T, h, w, C] (float32, on the host) at the end.

        source: latents of the source clip [T, h, w, C] on the host; C = 0 for a net that takes none, with noise given. guidance: that of each step.
        windows: see `video/windows.py`; one window means one dispatch a step. noise: unit noise [T, h, w, C] to start from instead of the seed's.
        shared: share of the seed's noise that all frames have in common.
        """
        scale, shared = jax.device_put((np.float32(table.start), np.float32(shared)))
        first, *later = (
            NoiseSource(key, shared)
            for key in jax.random.split(jax.random.key(seed), len(table.steps.t) + 1)
        )
        steps = list(zip(sampler_steps(table), later, guidance, strict=True))
        run = self.sample_one_window if len(windows) == 1 else self.sample_windows
        return run(params, np.asarray(source, np.float32), steps, first, scale, windows, noise)

    def sample_one_window(self, params, source, steps, first, scale, windows, noise):
        frames, source = self.spread.put(
            (np.arange(len(source), dtype=np.int32), source), FRAMES_AXIS
        )
        x = (
            self.start(first, frames, scale, source)
            if noise is None
            else self.spread.put(noise * np.float32(scale), FRAMES_AXIS)
        )
        state = SamplerState(x, self.spread.put(np.zeros(x.shape, np.float32), FRAMES_AXIS))
        for step, drawn, guidance in steps:
            state = self.whole(params, state, source, frames, drawn, step, guidance)
            yield None
        yield jax.device_get(state.x)

    def sample_windows(self, params, source, steps, first, scale, windows, noise):
        """The clip stays on the host; each device sees one window at a time, so its memory does not grow with length.

        Every step predicts each window and blends the predictions where windows overlap, then advances the whole clip
        (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113, along time).
        """
        put, numbers = self.spread.put, np.arange(len(source), dtype=np.int32)
        if noise is None:
            x = np.empty_like(source)
            for window in windows:
                x[window] = jax.device_get(
                    self.start(first, put(numbers[window]), scale, put(source[window]))
                )
        else:
            x = noise * np.float32(scale)
        x0, weights = np.zeros_like(x), blend_weights(windows, len(source))
        for step, drawn, guidance in steps:
            prediction = np.zeros_like(x)
            for i in range(0, len(windows), self.spread.count):
                group = windows[i : i + self.spread.count]
                filled = group + group[-1:] * (self.spread.count - len(group))
                found = jax.device_get(
                    self.guided(
                        params,
                        *put(
                            tuple(np.stack([clip[w] for w in filled]) for clip in (x, source)),
                            WINDOWS_AXIS,
                        ),
                        step,
                        guidance,
                    )
                )
                for window, weight, part in zip(
                    group, weights[i : i + len(group)], found[: len(group)], strict=True
                ):
                    prediction[window] += weight[:, None, None, None] * part
                    yield None
            after = SamplerState(np.empty_like(x), np.empty_like(x))
            for window in windows:
                state, part, frames = put(
                    (SamplerState(x[window], x0[window]), prediction[window], numbers[window])
                )
                state = jax.device_get(self.advance(state, part, frames, drawn, step))
                after.x[window], after.x0[window] = (
                    state  # where windows overlap, they hold the same values
                )
            x, x0 = after
            runtime.trim_host_memory()
        yield x


def blend_weights(windows: list[slice], length: int) -> list[np.ndarray]:
    """For each window the weights [frames] of its predictions: a tent over the window, and the tents of a frame sum to 1."""
    tents = [
        np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        for n in (w.stop - w.start for w in windows)
    ]
    total = np.zeros(length, np.float32)
    for tent, window in zip(tents, windows, strict=True):
        total[window] += tent
    return [tent / total[window] for tent, window in zip(tents, windows, strict=True)]
