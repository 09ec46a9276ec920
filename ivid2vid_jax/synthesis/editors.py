"""What turns a clip and captions into edited clips, with a text-to-image base alone; see `synthesis/engine.py` for the stages around it.

    editor = EDITORS["tune_a_video"](pipeline.load(base), TuneAVideoConfig())
    edited = editor([Task(clip, "a dog runs", ("a fox runs",), seed=0)])[0][0]       # uint8 [T, H, W, 3]

Several clips are worked on at once, each device its own: they share the base's weights and nothing else, so nothing is sent between devices.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.diffusion import losses
from ivid2vid_jax.diffusion.denoiser import Condition, make_denoiser
from ivid2vid_jax.diffusion.inversion import InversionStep, inversion_steps, inversion_update
from ivid2vid_jax.diffusion.samplers import SamplerStep, SamplerTable, make_sampler, sampler_steps
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.inference.sampling_loop import Guidance, NoiseSource, SamplerState, full_clip_step
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.device_group import WINDOWS_AXIS, DeviceGroup
from ivid2vid_jax.training.params import flatten, trainable, unflatten
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.inflate import inflate_params
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder

TRAINED = (
    r"/attn1/to_q/",
    r"/attn2/to_q/",
    r"/attn_temp/",
)  # Tune-A-Video's; its norm_temp stays as it is


@dataclasses.dataclass(frozen=True)
class EditTask:
    """A clip, uint8 [T, H, W, 3], what it shows, and what its edits are to show."""

    clip: np.ndarray
    caption: str
    edited_captions: tuple[str, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class TuneAVideoConfig:
    """Wu et al. 2022, arXiv 2212.11565, at its code's values: a net is tuned on each clip and samples the edits from the clip's inverted noise."""

    steps: int = 500  # of tuning
    lr: float = 3e-5
    weight_decay: float = 1e-2
    clip: float = 1.0  # most norm of a clip's gradient
    inversion: int = 50  # steps of DDIM inversion
    inversion_prompt: Literal["empty", "caption"] = (
        "empty"  # with the clip's caption and text scale 1, what both captions share is kept best
    )
    sampling: int = 50  # steps of DDIM
    text_scale: float = 12.5
    strength: float = (
        1.0  # share of the way to noise that inversion goes; less keeps more of the clip
    )
    random_bias: bool = False  # the temporal layers' output bias drawn as the original leaves it, instead of zero: the net then starts off its base
    at_once: int = 1  # clips a device


@dataclasses.dataclass(frozen=True)
class SharedNoiseConfig:
    """No tuning: every frame starts from its latents under the same noise, or from its own inverted noise, and attends to the first frame and the one
    before.
    """

    sampling: int = 20  # steps of DDIM
    text_scale: float = 7.5
    strength: float = (
        0.8  # share of the way to noise from which frames start; less keeps more of the clip
    )
    inversion: int = 0  # steps of DDIM inversion with the clip's caption, for each frame's own noise; 0 = noise that is the same for all
    at_once: int = 1  # clips a device


class ClipEditor(ABC):
    """What both editors share: a net from the base's weights, clips in and out of latents, sampling many clips at once."""

    changes: dict = {}  # of the base's U-Net
    least_inversion = 0  # steps

    def __init__(self, pipe: Pipeline, config: Any, devices: int | None = None):
        unet, latent = pipe.folder.unet, pipe.folder.vae.latent_channels
        if unet.in_channels != latent or unet.temporal:
            raise UserError(
                f"{pipe.folder.path}: clips are edited with a text-to-image base; this U-Net takes {unet.in_channels} channels, temporal layers {unet.temporal}"
            )
        if not 0 < config.strength <= 1 or config.at_once < 1:
            raise UserError(
                f"strength {config.strength} must be above 0 and at most 1, at-once {config.at_once} at least 1"
            )
        for name, low in (("sampling", 1), ("inversion", self.least_inversion)):
            if not low <= getattr(config, name) <= pipe.schedule.num_train_timesteps:
                raise UserError(
                    f"{name} {getattr(config, name)} must be between {low} and {pipe.schedule.num_train_timesteps}, the base's timesteps"
                )
        self.pipe, self.config, self.schedule = pipe, config, pipe.schedule
        self.spread = DeviceGroup(devices)
        self.together = self.spread.count * config.at_once  # clips of one call
        net = dataclasses.replace(unet, **self.changes)
        self.denoise = make_denoiser(net, pipe.attention_impl, dtype=pipe.dtype)
        self.base = flatten(inflate_params(pipe.params["unet"], unet, net, 0))
        self.sample_step = self.jit_batched(self.step, 4)
        self.rise_step = self.jit_batched(self.inversion_step, 3, donate_argnums=2)

    def jit_batched(self, function: Callable, stacked: int, **options) -> Callable:
        """The program of function(base, *of one clip, *for all), for `stacked` arguments that hold one row a clip."""

        def program(base, *args):
            each = jax.vmap(
                function, in_axes=(None, *(0,) * stacked, *(None,) * (len(args) - stacked))
            )
            if self.spread.count == 1:
                return each(base, *args)
            where = (P(), *(P(WINDOWS_AXIS),) * stacked, *(P(),) * (len(args) - stacked))
            return jax.shard_map(
                each,
                mesh=self.spread.meshes[WINDOWS_AXIS],
                in_specs=where,
                out_specs=P(WINDOWS_AXIS),
                check_vma=False,
            )(base, *args)

        return runtime.jit(program, **options)

    def put(self, tree: Any) -> Any:
        """From the host to the devices, each its own rows: one a clip."""
        return self.spread.put(tree, by=WINDOWS_AXIS)

    @cached_property
    def placed(self) -> dict[str, jax.Array]:
        """The base's weights, on every device."""
        return self.spread.put(self.base)

    def step(self, base, tuned, state: SamplerState, text, key, step: SamplerStep, weights):
        """A step of sampling one clip; text: [2, K, D] of the empty prompt and of the edit."""
        guidance, frames = (
            Guidance(text, jnp.ones(2), weights, jnp.zeros(())),
            jnp.arange(state.x.shape[0]),
        )
        params = unflatten({**base, **tuned})
        return full_clip_step(
            self.denoise,
            self.schedule.prediction_type,
            params,
            state,
            state.x[..., :0],
            frames,
            NoiseSource(key),
            step,
            guidance,
        )

    def __call__(
        self, tasks: Sequence[EditTask], progress: Callable[[int, int], None] | None = None
    ) -> list[list[np.ndarray | None]]:
        """The edited clips of each task, None for one that came out not finite. Tasks go through `together` at a time; their clips have one
        shape. progress(steps done, steps in all).
        """
        if len({task.clip.shape for task in tasks}) > 1:
            raise UserError("clips that are edited together have one shape")
        check_size(self.pipe.folder, tasks[0].clip.shape[1:3])
        groups = [tasks[i : i + self.together] for i in range(0, len(tasks), self.together)]
        count = ProgressCounter(progress, sum(self.work(group) for group in groups))
        return [edits for group in groups for edits in self.group(group, count)]

    def group(
        self, tasks: Sequence[EditTask], count: "ProgressCounter"
    ) -> list[list[np.ndarray | None]]:
        """The last task fills up a group that is short."""
        filled = [*tasks, *[tasks[-1]] * (self.together - len(tasks))]
        latents = (
            np.stack(
                [
                    self.pipe.vae_codec.encode(self.pipe.params["vae"], iter(task.clip))
                    for task in filled
                ]
            )
            * self.pipe.folder.vae.scaling_factor
        )
        keys = self.put(jnp.stack([random.key(task.seed) for task in filled]))
        base, out = self.placed, [[] for _ in tasks]
        table, first = sampling_schedule(self.schedule, self.config)
        tuned, noisy = self.prepare(base, filled, latents, keys, table, first, count)
        for number in range(max_edits(tasks)):
            captions = [
                task.edited_captions[min(number, len(task.edited_captions) - 1)] for task in filled
            ]
            edited = self.sample(base, tuned, noisy, captions, keys, table, first, count)
            for row, task in enumerate(tasks):
                if number < len(task.edited_captions):
                    whole, scaled = (
                        np.isfinite(edited[row]).all(),
                        edited[row] / self.pipe.folder.vae.scaling_factor,
                    )
                    out[row].append(
                        np.stack(list(self.pipe.vae_codec.decode(self.pipe.params["vae"], scaled)))
                        if whole
                        else None
                    )
        return out

    def sample(
        self, base, tuned, noisy, captions, keys, table: SamplerTable, first: int, count
    ) -> np.ndarray:
        texts = self.pipe.encode_text(["", *captions])
        text = self.put(jnp.stack([jnp.stack([texts[0], each]) for each in texts[1:]]))
        weights = jnp.asarray(
            [1 - self.config.text_scale, self.config.text_scale], jnp.float32
        )  # of both, also where one of them is zero
        state = self.put(SamplerState(noisy, np.zeros_like(noisy)))
        for step in sampler_steps(table)[first:]:
            state = self.sample_step(base, tuned, state, text, keys, step, weights)
            count.one()
        return jax.device_get(state.x)

    def inversion_step(self, base, tuned, x, text, step):
        return inversion_update(
            self.denoise,
            self.schedule.prediction_type,
            unflatten({**base, **tuned}),
            x[None],
            text[None],
            step,
        )[0]

    def inverted(self, base, tuned, latents, text, count) -> np.ndarray:
        """Their noise by DDIM inversion, as far as the strength goes; latents [N, T, h, w, C] and text [N, K, D] on the devices."""
        noise = jnp.copy(latents)
        for step in jax.device_put(inversion_schedule(self.schedule, self.config)):
            noise = self.rise_step(base, tuned, noise, text, step)
            count.one()
        return jax.device_get(noise)

    @abstractmethod
    def prepare(self, base, tasks, latents, keys, table: SamplerTable, first: int, count):
        """(what was tuned, name -> [N, ...]; latents [N, T, h, w, C] to start from at step `first` of the table)."""

    def work(self, tasks: Sequence[EditTask]) -> int:
        """Steps that a group takes."""
        return len(inversion_schedule(self.schedule, self.config)) + steps_left(
            self.config
        ) * max_edits(tasks)


class SharedNoise(ClipEditor):
    changes = dict(spatial_attention="sparse_causal")

    def prepare(self, base, tasks, latents, keys, table, first, count):
        if self.config.inversion:
            x, text = self.put(
                (np.float32(latents), self.pipe.encode_text([task.caption for task in tasks]))
            )
            return {}, self.inverted(base, {}, x, text, count)
        noise = np.stack(
            [random.normal(random.key(task.seed), latents.shape[2:]) for task in tasks]
        )[:, None]
        start = table.start if first == 0 else 1.0
        return {}, np.float32(
            table.steps.alpha[first] * latents + table.steps.sigma[first] * start * noise
        )


class TuneAVideo(ClipEditor):
    changes = dict(spatial_attention="sparse_causal", temporal=("tune_a_video",), group_norm="clip")
    least_inversion = 1

    def __init__(self, pipe: Pipeline, config: TuneAVideoConfig, devices: int | None = None):
        super().__init__(pipe, config, devices)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.adamw(config.lr, weight_decay=config.weight_decay),
        )
        self.trained = {
            name: np.asarray(self.base.pop(name), np.float32)
            for name in sorted(trainable(self.base, TRAINED))
        }
        if config.random_bias:
            self.trained |= drawn_biases(self.trained)
        self.tune_step = self.jit_batched(self.tune, 5, donate_argnums=(1, 2))

    def work(self, tasks):
        return self.config.steps + super().work(tasks)

    def tune(self, base, tuned, optimizer_state, latents, text, key, number):
        """One step on one clip: [T, h, w, C] scaled latents, [K, D] of its caption."""
        key_t, key_noise = random.split(random.fold_in(key, number))
        t = random.randint(key_t, (1,), 0, self.schedule.num_train_timesteps)
        alpha_bar = jnp.asarray(self.schedule.alphas_cumprod, jnp.float32)[t]
        noise = random.normal(key_noise, (1, *latents.shape))
        x_t = losses.add_noise(latents[None], noise, alpha_bar)
        wanted = losses.prediction_target(
            latents[None], noise, alpha_bar, self.schedule.prediction_type
        )

        def loss(tuned):
            found = self.denoise(unflatten({**base, **tuned}), x_t, t, Condition(text[None], None))
            return losses.mse_per_clip(found - wanted)[0]

        updates, optimizer_state = self.optimizer.update(
            jax.grad(loss)(tuned), optimizer_state, tuned
        )
        return optax.apply_updates(tuned, updates), optimizer_state

    def prepare(self, base, tasks, latents, keys, table, first, count):
        texts = self.pipe.encode_text(["", *(task.caption for task in tasks)])
        x, text = self.put((np.float32(latents), texts[1:]))
        tuned = self.put(
            {name: np.stack([value] * len(tasks)) for name, value in self.trained.items()}
        )
        state = self.put(jax.vmap(self.optimizer.init)(tuned))
        for number in range(self.config.steps):
            tuned, state = self.tune_step(base, tuned, state, x, text, keys, np.int32(number))
            count.one()
        told = (
            text
            if self.config.inversion_prompt == "caption"
            else self.put(jnp.stack([texts[0]] * len(tasks)))
        )
        return tuned, self.inverted(base, tuned, x, told, count)


EDITORS = {"tune_a_video": TuneAVideo, "shared_noise": SharedNoise}


def drawn_biases(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The temporal layers' output biases, uniform within 1/sqrt(width), as PyTorch's layers start."""
    out = {}
    for number, name in enumerate(
        name for name in weights if name.endswith("/attn_temp/to_out.0/bias")
    ):
        limit = len(weights[name]) ** -0.5
        out[name] = (
            np.random.default_rng([0, number])
            .uniform(-limit, limit, weights[name].shape)
            .astype(np.float32)
        )
    return out


def steps_left(config) -> int:
    """Of the steps of sampling, those that the config's strength leaves."""
    return max(1, round(config.strength * config.sampling))


def sampling_schedule(schedule: NoiseSchedule, config) -> tuple[SamplerTable, int]:
    """(the steps from noise to a clip, the one at which the config's strength begins)."""
    return make_sampler("ddim", schedule, config.sampling), config.sampling - steps_left(config)


def inversion_schedule(schedule: NoiseSchedule, config) -> list[InversionStep]:
    """The steps of inversion, which end at the very noise level at which `descent` begins: latents that are noisier or cleaner than the net is told
    come out wrong. Where inversion and sampling have as many steps, these are sampling's own; else the last one is as long as it must be.
    """
    if not config.inversion:
        return []
    table, first = sampling_schedule(schedule, config)
    t, alpha, sigma = (
        np.asarray(column)[first]
        for column in (table.steps.t, table.steps.alpha, table.steps.sigma)
    )
    every = inversion_steps(schedule, config.inversion)
    steps = [step for step in every if step.t <= t]
    if steps and steps[-1].t == t:
        return steps
    here = (
        (steps[-1].alpha_after, steps[-1].sigma_after)
        if steps
        else (every[0].alpha, every[0].sigma)
    )
    return [*steps, InversionStep(t, *here, alpha, sigma)]


def check_size(folder: PipelineFolder, size: Sequence[int]) -> None:
    """UserError for clips of a height and width that the base's nets cannot halve as often as they do."""
    factor = folder.vae.downscale * folder.unet.downscale
    if any(side % factor for side in size):
        raise UserError(
            f"clips of {size[1]}x{size[0]} pixels: {folder.path} takes multiples of {factor} alone; cut them with another --clips.size"
        )


def max_edits(tasks: Sequence[EditTask]) -> int:
    return max(len(task.edited_captions) for task in tasks)


@dataclasses.dataclass
class ProgressCounter:
    """Steps done, of all."""

    progress: Callable[[int, int], None] | None
    total: int
    done: int = 0

    def one(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)
