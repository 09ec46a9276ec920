"""The base class of the data engine's editors: clips in and out of latents, inversion, sampling.

Several clips are edited at once, each on its own device. They share the base's weights and nothing
else, so nothing is sent between devices.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.diffusion.denoiser import make_denoiser
from ivid2vid_jax.diffusion.inversion import InversionStep, inversion_update
from ivid2vid_jax.diffusion.samplers import SamplerStep, sampler_steps
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.inference.sampling_loop import Guidance, NoiseSource, SamplerState, full_clip_step
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.device_group import BATCH_AXIS, DeviceGroup
from ivid2vid_jax.synthesis.edit_schedule import (
    inversion_schedule,
    sampling_schedule,
    sampling_steps,
)
from ivid2vid_jax.training.params import flatten, unflatten
from ivid2vid_jax.weights.inflate import inflate_params
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder


@dataclasses.dataclass(frozen=True)
class EditTask:
    """A clip [T, H, W, 3] uint8, its caption, and the captions of the edits to make."""

    clip: np.ndarray
    caption: str
    edited_captions: tuple[str, ...]
    seed: int


class ClipBatch(NamedTuple):
    """The clips of one call: tasks, latents [N, T, h, w, C] scaled on the host, N PRNG keys."""

    tasks: Sequence[EditTask]
    latents: np.ndarray
    keys: jax.Array


@dataclasses.dataclass
class ProgressCounter:
    """Counts steps and reports them as progress(done, total)."""

    progress: Callable[[int, int], None] | None
    total: int
    done: int = 0

    def step(self) -> None:
        """One more step is done."""
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)


class ClipEditor(ABC):
    """Edits clips by caption, with a text-to-image base.

    A subclass says how the base's U-Net is changed (`changes`), and where sampling starts
    (`prepare`). Parameters are flat dicts: `base`, shared by all clips, and `tuned`, with a leading
    axis of clips.
    """

    changes: ClassVar[Mapping[str, Any]] = {}  # fields of the base's UNetConfig
    min_inversion: ClassVar[int] = 0  # steps

    def __init__(self, pipe: Pipeline, config: Any, devices: int | None = None):
        """Raises UserError for a base that is no text-to-image model, or a config out of range.

        Args:
            pipe: the base.
            config: SharedNoiseConfig or TuneAVideoConfig.
            devices: number of devices (None: all of this process).
        """
        self.pipe, self.config, self.schedule = pipe, config, pipe.schedule
        self.check()
        self.device_group = DeviceGroup(devices)
        self.clips_per_call = self.device_group.count * config.at_once
        unet = pipe.folder.unet
        changed = dataclasses.replace(unet, **self.changes)
        self.denoise = make_denoiser(changed, pipe.attention_impl, dtype=pipe.dtype)
        self.base = flatten(inflate_params(pipe.params["unet"], unet, changed, 0))
        self.jit_sample_step = self.jit_batched(self.sample_step, 4)
        self.jit_inversion_step = self.jit_batched(self.inversion_step, 3, donate_argnums=2)

    def check(self) -> None:
        """Raises UserError; see `__init__`."""
        config, folder = self.config, self.pipe.folder
        unet, timesteps = folder.unet, self.schedule.num_train_timesteps
        if unet.in_channels != folder.vae.latent_channels or unet.temporal:
            raise UserError(
                f"{folder.path}: clips are edited with a text-to-image base; this U-Net takes "
                f"{unet.in_channels} channels, temporal layers {unet.temporal}"
            )
        if not 0 < config.strength <= 1 or config.at_once < 1:
            raise UserError(
                f"strength {config.strength} must be above 0 and at most 1, "
                f"at-once {config.at_once} at least 1"
            )
        for name, low in (("sampling", 1), ("inversion", self.min_inversion)):
            if not low <= getattr(config, name) <= timesteps:
                raise UserError(
                    f"{name} {getattr(config, name)} must be between {low} and {timesteps}, "
                    "the base's timesteps"
                )

    # ---- programs: one clip per row, vectorised and split over the devices

    def jit_batched(self, function: Callable, batched: int, **options: Any) -> Callable:
        """Compiles function(base, *batched, *shared) for many clips.

        Args:
            function: on one clip.
            batched: number of arguments after `base` that hold one row per clip.
            **options: of `jax.jit`.
        """

        def program(base, *args):
            shared = len(args) - batched
            vectorised = jax.vmap(function, in_axes=(None, *(0,) * batched, *(None,) * shared))
            if self.device_group.count == 1:
                return vectorised(base, *args)
            return jax.shard_map(
                vectorised,
                mesh=self.device_group.meshes[BATCH_AXIS],
                in_specs=(P(), *(P(BATCH_AXIS),) * batched, *(P(),) * shared),
                out_specs=P(BATCH_AXIS),
            )(base, *args)

        return runtime.jit(program, **options)

    def put(self, tree: Any) -> Any:
        """Host arrays to the devices, each of which gets its own rows (one per clip)."""
        return self.device_group.put(tree, by=BATCH_AXIS)

    @cached_property
    def base_on_devices(self) -> dict[str, jax.Array]:
        """The base's parameters, replicated."""
        return self.device_group.put(self.base)

    def sample_step(self, base, tuned, state: SamplerState, text, key, step: SamplerStep, weights):
        """One sampling step of one clip.

        Args:
            base: parameters that all clips share.
            tuned: parameters of this clip.
            state: latents.
            text: [2, K, D], embeddings of the empty prompt and of the edit.
            key: PRNG key.
            step: a row of the sampler's table.
            weights: [2], guidance weights of the two branches.
        """
        guidance = Guidance(text, jnp.ones(2), weights, jnp.zeros(()))
        frames = jnp.arange(state.x.shape[0])
        params = unflatten({**base, **tuned})
        no_source = state.x[..., :0]
        return full_clip_step(
            self.denoise,
            self.schedule.prediction_type,
            params,
            state,
            no_source,
            frames,
            NoiseSource(key),
            step,
            guidance,
        )

    def inversion_step(self, base, tuned, x, text, step: InversionStep):
        """One inversion step of one clip: latents x [T, h, w, C], text [K, D]."""
        params = unflatten({**base, **tuned})
        prediction_type = self.schedule.prediction_type
        return inversion_update(self.denoise, prediction_type, params, x[None], text[None], step)[0]

    # ---- editing

    def __call__(
        self, tasks: Sequence[EditTask], progress: Callable[[int, int], None] | None = None
    ) -> list[list[np.ndarray | None]]:
        """Edits clips of one shape.

        Args:
            tasks: any number; `clips_per_call` of them are processed at a time.
            progress: called as progress(steps done, steps in all).

        Returns:
            The edited clips of each task, [T, H, W, 3] uint8; None for one that is not finite.
        """
        if len({task.clip.shape for task in tasks}) > 1:
            raise UserError("clips that are edited together must have the same shape")
        check_size(self.pipe.folder, tasks[0].clip.shape[1:3])
        size = self.clips_per_call
        groups = [tasks[i : i + size] for i in range(0, len(tasks), size)]
        counter = ProgressCounter(progress, sum(self.num_steps(group) for group in groups))
        return [edits for group in groups for edits in self.edit_group(group, counter)]

    def edit_group(
        self, tasks: Sequence[EditTask], counter: ProgressCounter
    ) -> list[list[np.ndarray | None]]:
        """Edits at most `clips_per_call` clips; copies of the last task fill a smaller group."""
        filled = [*tasks, *[tasks[-1]] * (self.clips_per_call - len(tasks))]
        keys = self.put(jnp.stack([random.key(task.seed) for task in filled]))
        batch = ClipBatch(filled, self.encode(filled), keys)
        tuned, noisy = self.prepare(batch, counter)
        edits: list[list[np.ndarray | None]] = [[] for _ in tasks]
        for number in range(max_edits(tasks)):
            captions = [
                task.edited_captions[min(number, len(task.edited_captions) - 1)] for task in filled
            ]
            latents = self.sample(tuned, noisy, captions, keys, counter)
            for row, task in enumerate(tasks):
                if number < len(task.edited_captions):
                    edits[row].append(self.decode(latents[row]))
        return edits

    def encode(self, tasks: Sequence[EditTask]) -> np.ndarray:
        """Scaled latents of the clips, [N, T, h, w, C]."""
        codec, params = self.pipe.vae_codec, self.pipe.params["vae"]
        latents = np.stack([codec.encode(params, iter(task.clip)) for task in tasks])
        return latents * self.pipe.folder.vae.scaling_factor

    def decode(self, latents: np.ndarray) -> np.ndarray | None:
        """A clip [T, H, W, 3] uint8 from scaled latents; None if these are not finite."""
        if not np.isfinite(latents).all():
            return None
        unscaled = latents / self.pipe.folder.vae.scaling_factor
        return np.stack(list(self.pipe.vae_codec.decode(self.pipe.params["vae"], unscaled)))

    def sample(
        self, tuned, noisy: np.ndarray, captions: list[str], keys, counter: ProgressCounter
    ) -> np.ndarray:
        """Samples latents [N, T, h, w, C] of the captions, from noisy ones of the same shape."""
        base, (table, first) = self.base_on_devices, sampling_schedule(self.schedule, self.config)
        texts = self.pipe.encode_text(["", *captions])
        text = self.put(jnp.stack([jnp.stack([texts[0], caption]) for caption in texts[1:]]))
        # both branches are computed, also if the weight of one is zero
        weights = jnp.asarray([1 - self.config.text_scale, self.config.text_scale], jnp.float32)
        state = SamplerState(self.put(noisy), self.put(np.zeros_like(noisy)))
        for step in sampler_steps(table)[first:]:
            state = self.jit_sample_step(base, tuned, state, text, keys, step, weights)
            counter.step()
        return jax.device_get(state.x)

    def invert(self, tuned, latents: jax.Array, text: jax.Array, counter: ProgressCounter):
        """The noise of clips by DDIM inversion, up to the config's strength.

        Args:
            tuned: parameters.
            latents: [N, T, h, w, C], on the devices.
            text: [N, K, D], embeddings of the prompts, on the devices.
            counter: counts the steps.
        """
        noise = jnp.copy(latents)
        for step in jax.device_put(inversion_schedule(self.schedule, self.config)):
            noise = self.jit_inversion_step(self.base_on_devices, tuned, noise, text, step)
            counter.step()
        return jax.device_get(noise)

    @abstractmethod
    def prepare(
        self, batch: ClipBatch, counter: ProgressCounter
    ) -> tuple[dict[str, jax.Array], np.ndarray]:
        """Tunes and inverts, if the method does.

        Returns:
            The tuned parameters, name -> [N, ...], and the noisy latents [N, T, h, w, C] to start
            from.
        """

    def num_steps(self, tasks: Sequence[EditTask]) -> int:
        """Number of steps that a group takes, for progress."""
        inversion = len(inversion_schedule(self.schedule, self.config))
        return inversion + sampling_steps(self.config) * max_edits(tasks)


def max_edits(tasks: Sequence[EditTask]) -> int:
    """The largest number of edits of a task."""
    return max(len(task.edited_captions) for task in tasks)


def check_size(folder: PipelineFolder, size: Sequence[int]) -> None:
    """Raises UserError for a height or width that the base's networks cannot halve evenly."""
    factor = folder.vae.downscale * folder.unet.downscale
    if any(side % factor for side in size):
        raise UserError(
            f"clips of {size[1]}x{size[0]} pixels: {folder.path} takes multiples of {factor} "
            "alone; cut them with another --clips.size"
        )
