"""The sampling loop: a clip in one window, or a long clip in overlapping windows.

The samplers use the net only through `denoise(params, x_t, t, cond)` of `diffusion/denoiser.py`.
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
from ivid2vid_jax.parallel.device_group import BATCH_AXIS, FRAMES_AXIS, DeviceGroup


class Guidance(NamedTuple):
    """The K guidance branches of one sampler step."""

    text: jax.Array  # text embeddings [K, L, D]
    video: jax.Array  # [K]: 1 keeps the source clip, 0 drops it
    weights: jax.Array  # [K]
    rescale: jax.Array  # guidance rescale, scalar


class NoiseSource(NamedTuple):
    """Where a step's noise comes from; see `samplers.frame_noise`."""

    key: jax.Array
    shared: jax.Array | float = 0.0  # share of the variance that all frames have in common


class SamplerState(NamedTuple):
    """What a sampler carries from step to step: arrays [T, h, w, C], float32.

    Typed as Any, since abstract values and shardings form the same tree.
    """

    x: Any  # noisy latents
    x0: Any  # clean latents predicted at the previous step


# A step's coefficients, noise and guidance branches.
Step = tuple[SamplerStep, NoiseSource, Guidance]


def guided_prediction(
    denoise: Callable, params: Any, x, source, step: SamplerStep, guidance: Guidance
):
    """Guided predictions of G windows; all branches of all windows form one batch.

    x, source: latents [G, T, h, w, C]. Returns [G, T, h, w, C], float32.
    """
    G, K = x.shape[0], guidance.text.shape[0]

    def repeat_branches(window):  # [G, ...] -> [G*K, ...]
        return jnp.broadcast_to(window[:, None], (G, K, *window.shape[1:])).reshape(
            G * K, *window.shape[1:]
        )

    video_mask = jnp.tile(guidance.video, G).reshape(G * K, 1, 1, 1, 1)
    text = jnp.broadcast_to(guidance.text[None], (G, *guidance.text.shape)).reshape(
        G * K, *guidance.text.shape[1:]
    )
    predictions = denoise(
        params,
        repeat_branches(x),
        jnp.broadcast_to(step.t, (G * K,)),
        Condition(text, repeat_branches(source) * video_mask),
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
    """One sampler step from a guided prediction; frames: int32 [T], frame numbers in the clip."""
    x0 = predicted_x0(state.x, prediction, step, prediction_type)
    step_noise = frame_noise(noise.key, frames, state.x.shape[1:], noise.shared)
    return SamplerState(update(state.x, x0, state.x0, step_noise, step), x0)


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
    """One sampler step of a clip in one window: guided prediction and update.

    source: [T, h, w, C]; frames: int32 [T], frame numbers in the clip.
    """
    prediction = guided_prediction(denoise, params, state.x[None], source[None], step, guidance)[0]
    return sampler_update(state, prediction, frames, noise, step, prediction_type)


def initial_noise(noise: NoiseSource, frames, scale, source):
    """Initial latents [T, h, w, C], shaped like `source`: unit noise times `scale`."""
    return frame_noise(noise.key, frames, source.shape[1:], noise.shared) * scale


class SamplingLoop:
    """Compiled sampler steps around one `denoise`; each shape compiles once.

    devices: the devices that share the work; None for one.
    """

    def __init__(self, denoise: Callable, prediction_type: str, devices: DeviceGroup | None = None):
        self.devices = devices or DeviceGroup(1)
        jit = self.devices.jit
        self.initial_noise = jit(initial_noise)
        self.predict = jit(partial(guided_prediction, denoise), BATCH_AXIS)
        self.update = jit(
            partial(sampler_update, prediction_type=prediction_type), donate_argnums=0
        )
        self.full_step = jit(partial(full_clip_step, denoise, prediction_type), donate_argnums=1)

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
        """Yields None after each window of each step, and the final latents at the end.

        The final latents are [T, h, w, C] float32 on the host.

        Args:
            params: the U-Net's parameters.
            source: latents of the source clip [T, h, w, C] on the host. C = 0 for a net that takes
                no source clip; `noise` is then required.
            guidance: the branches of each step.
            table: the sampler's coefficients.
            seed: seed of all noise.
            windows: see `video/windows.py`. With one window each step is one dispatch.
            noise: initial unit noise [T, h, w, C]; None draws it from the seed.
            shared: share of the seed's noise that all frames have in common, 0 to 1.
        """
        scale, shared = jax.device_put((np.float32(table.start), np.float32(shared)))
        first_noise, *step_noises = (
            NoiseSource(key, shared)
            for key in jax.random.split(jax.random.key(seed), len(table.steps.t) + 1)
        )
        steps = list(zip(sampler_steps(table), step_noises, guidance, strict=True))
        sample = self.sample_one_window if len(windows) == 1 else self.sample_windows
        source = np.asarray(source, np.float32)
        return sample(params, source, steps, first_noise, scale, windows, noise)

    def sample_one_window(
        self,
        params: Any,
        source: np.ndarray,
        steps: list[Step],
        first_noise: NoiseSource,
        scale: jax.Array,
        windows: list[slice],
        noise: np.ndarray | None,
    ) -> Iterator[np.ndarray | None]:
        """Samples a clip in one window; its latents stay on the device."""
        frames, source = self.devices.put(
            (np.arange(len(source), dtype=np.int32), source), FRAMES_AXIS
        )
        if noise is None:
            x = self.initial_noise(first_noise, frames, scale, source)
        else:
            x = self.devices.put(noise * np.float32(scale), FRAMES_AXIS)
        state = SamplerState(x, self.devices.put(np.zeros(x.shape, np.float32), FRAMES_AXIS))
        for step, step_noise, guidance in steps:
            state = self.full_step(params, state, source, frames, step_noise, step, guidance)
            yield None
        yield jax.device_get(state.x)

    def sample_windows(
        self,
        params: Any,
        source: np.ndarray,
        steps: list[Step],
        first_noise: NoiseSource,
        scale: jax.Array,
        windows: list[slice],
        noise: np.ndarray | None,
    ) -> Iterator[np.ndarray | None]:
        """Samples a long clip in overlapping windows.

        The clip stays on the host and each device holds one window, so device memory does not grow
        with length. Every step predicts each window, blends the predictions where windows overlap
        and then updates the whole clip (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113,
        along time).
        """
        frames = np.arange(len(source), dtype=np.int32)
        if noise is None:
            x = np.empty_like(source)
            for window in windows:
                x[window] = jax.device_get(
                    self.initial_noise(
                        first_noise,
                        self.devices.put(frames[window]),
                        scale,
                        self.devices.put(source[window]),
                    )
                )
        else:
            x = noise * np.float32(scale)
        x0, weights = np.zeros_like(x), blend_weights(windows, len(source))
        for step, step_noise, guidance in steps:
            prediction = np.zeros_like(x)
            for window, weight, part in zip(
                windows,
                weights,
                self.predict_windows(params, x, source, windows, step, guidance),
                strict=True,
            ):
                prediction[window] += weight[:, None, None, None] * part
                yield None
            x, x0 = self.update_windows(x, x0, prediction, frames, windows, step_noise, step)
            runtime.trim_host_memory()
        yield x

    def predict_windows(
        self,
        params: Any,
        x: np.ndarray,
        source: np.ndarray,
        windows: list[slice],
        step: SamplerStep,
        guidance: Guidance,
    ) -> Iterator[np.ndarray]:
        """Yields the guided prediction of each window; each device computes one window at a time.

        x, source: latents of the clip [T, h, w, C].
        """
        count = self.devices.count
        for i in range(0, len(windows), count):
            group = windows[i : i + count]
            padded_group = group + group[-1:] * (count - len(group))
            inputs = self.devices.put(
                tuple(np.stack([clip[window] for window in padded_group]) for clip in (x, source)),
                BATCH_AXIS,
            )
            predictions = jax.device_get(self.predict(params, *inputs, step, guidance))
            yield from predictions[: len(group)]

    def update_windows(
        self,
        x: np.ndarray,
        x0: np.ndarray,
        prediction: np.ndarray,
        frames: np.ndarray,
        windows: list[slice],
        noise: NoiseSource,
        step: SamplerStep,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Updates a clip's latents window by window; returns the new x and x0.

        Windows agree where they overlap, since the update is frame by frame.
        """
        new_x, new_x0 = np.empty_like(x), np.empty_like(x)
        for window in windows:
            inputs = self.devices.put(
                (SamplerState(x[window], x0[window]), prediction[window], frames[window])
            )
            new_x[window], new_x0[window] = jax.device_get(self.update(*inputs, noise, step))
        return new_x, new_x0


def blend_weights(windows: list[slice], length: int) -> list[np.ndarray]:
    """The weights [frames] of each window's predictions: a tent; those of each frame sum to 1."""
    tents = [
        np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        for n in (window.stop - window.start for window in windows)
    ]
    total = np.zeros(length, np.float32)
    for tent, window in zip(tents, windows, strict=True):
        total[window] += tent
    return [tent / total[window] for tent, window in zip(tents, windows, strict=True)]
