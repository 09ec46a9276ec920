"""The data engine's editors: they turn a clip and captions into edited clips.

editor = EDITORS["tune_a_video"](pipeline.load(base), TuneAVideoConfig())
[[edited]] = editor([EditTask(clip, "a dog runs", ("a fox runs",), seed=0)])  # uint8 [T, H, W, 3]
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random

from ivid2vid_jax.diffusion import losses
from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.synthesis.clip_editor import ClipBatch, ClipEditor, EditTask, ProgressCounter
from ivid2vid_jax.synthesis.edit_schedule import sampling_schedule
from ivid2vid_jax.training.params import trainable, unflatten

# Tune-A-Video trains these parameters, and not norm_temp
TRAINED = (r"/attn1/to_q/", r"/attn2/to_q/", r"/attn_temp/")


@dataclasses.dataclass(frozen=True)
class TuneAVideoConfig:
    """Tune-A-Video (Wu et al. 2022, arXiv 2212.11565), with the values of its code.

    A copy of the base is tuned on each clip, and samples the edits from the clip's inverted noise.
    """

    steps: int = 500  # number of tuning steps
    lr: float = 3e-5  # learning rate of AdamW
    weight_decay: float = 1e-2  # weight decay of AdamW
    clip: float = 1.0  # maximum norm of a clip's gradient
    inversion: int = 50  # steps of DDIM inversion
    # prompt of the inversion; "caption", with text scale 1, keeps most of what both captions share
    inversion_prompt: Literal["empty", "caption"] = "empty"
    sampling: int = 50  # steps of DDIM sampling
    text_scale: float = 12.5  # guidance scale
    # share of the way to noise that inversion goes; less keeps more of the clip
    strength: float = 1.0
    # draw the temporal layers' output biases as PyTorch does, instead of zeros; the tuned network
    # then differs from the base before the first step
    random_bias: bool = False
    at_once: int = 1  # clips per device


@dataclasses.dataclass(frozen=True)
class SharedNoiseConfig:
    """An editor without tuning.

    All frames start from their latents under the same noise, or from their own inverted noise, and
    attend to the first and the previous frame.
    """

    sampling: int = 20  # steps of DDIM sampling
    text_scale: float = 7.5  # guidance scale
    # share of the way to noise from which frames start; less keeps more of the clip
    strength: float = 0.8
    # steps of DDIM inversion with the clip's caption, for each frame's own noise; 0: shared noise
    inversion: int = 0
    at_once: int = 1  # clips per device


class SharedNoise(ClipEditor):
    """See SharedNoiseConfig."""

    changes: ClassVar = {"spatial_attention": "sparse_causal"}

    def prepare(
        self, batch: ClipBatch, counter: ProgressCounter
    ) -> tuple[dict[str, jax.Array], np.ndarray]:
        """The latents at the first noise level; nothing is tuned."""
        if self.config.inversion:
            captions = self.pipe.encode_text([task.caption for task in batch.tasks])
            x, text = self.put((np.float32(batch.latents), captions))
            return {}, self.invert({}, x, text, counter)
        table, first = sampling_schedule(self.schedule, self.config)
        noise = np.stack(
            [random.normal(random.key(task.seed), batch.latents.shape[2:]) for task in batch.tasks]
        )[:, None]
        start = table.start if first == 0 else 1.0
        alpha, sigma = table.steps.alpha[first], table.steps.sigma[first]
        noisy = alpha * batch.latents + sigma * start * noise
        return {}, np.asarray(noisy, np.float32)


class TuneAVideo(ClipEditor):
    """See TuneAVideoConfig."""

    changes: ClassVar = {
        "spatial_attention": "sparse_causal",
        "temporal": ("tune_a_video",),
        "group_norm": "clip",
    }
    min_inversion = 1

    def __init__(self, pipe: Pipeline, config: TuneAVideoConfig, devices: int | None = None):
        """See ClipEditor."""
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
            self.trained |= random_biases(self.trained)
        self.jit_tune_step = self.jit_batched(self.tune_step, 5, donate_argnums=(1, 2))

    def num_steps(self, tasks: Sequence[EditTask]) -> int:
        """Number of steps that a group takes, tuning included."""
        return self.config.steps + super().num_steps(tasks)

    def tune_step(self, base, tuned, optimizer_state, latents, text, key, number):
        """One tuning step on one clip: latents [T, h, w, C] scaled, text [K, D] of its caption."""
        key_t, key_noise = random.split(random.fold_in(key, number))
        t = random.randint(key_t, (1,), 0, self.schedule.num_train_timesteps)
        alpha_bar = jnp.asarray(self.schedule.alphas_cumprod, jnp.float32)[t]
        noise = random.normal(key_noise, (1, *latents.shape))
        x_t = losses.add_noise(latents[None], noise, alpha_bar)
        target = losses.prediction_target(
            latents[None], noise, alpha_bar, self.schedule.prediction_type
        )

        def loss(tuned):
            params = unflatten({**base, **tuned})
            prediction = self.denoise(params, x_t, t, Condition(text[None], None))
            return losses.mse_per_clip(prediction - target)[0]

        updates, optimizer_state = self.optimizer.update(
            jax.grad(loss)(tuned), optimizer_state, tuned
        )
        return optax.apply_updates(tuned, updates), optimizer_state

    def prepare(
        self, batch: ClipBatch, counter: ProgressCounter
    ) -> tuple[dict[str, jax.Array], np.ndarray]:
        """Tunes a copy of the trained parameters on each clip, and inverts the clips with them."""
        count = len(batch.tasks)
        texts = self.pipe.encode_text(["", *(task.caption for task in batch.tasks)])
        x, captions = self.put((np.float32(batch.latents), texts[1:]))
        tuned = self.put({name: np.stack([value] * count) for name, value in self.trained.items()})
        state = self.put(jax.vmap(self.optimizer.init)(tuned))
        for number in range(self.config.steps):
            tuned, state = self.jit_tune_step(
                self.base_on_devices, tuned, state, x, captions, batch.keys, np.int32(number)
            )
            counter.step()
        if self.config.inversion_prompt == "caption":
            prompts = captions
        else:
            prompts = self.put(jnp.stack([texts[0]] * count))
        return tuned, self.invert(tuned, x, prompts, counter)


EDITORS: dict[str, type[ClipEditor]] = {"tune_a_video": TuneAVideo, "shared_noise": SharedNoise}


def random_biases(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The temporal layers' output biases, uniform within 1/sqrt(width), as PyTorch draws them."""
    names = [name for name in weights if name.endswith("/attn_temp/to_out.0/bias")]
    biases = {}
    for number, name in enumerate(names):
        limit, rng = len(weights[name]) ** -0.5, np.random.default_rng([0, number])
        biases[name] = rng.uniform(-limit, limit, weights[name].shape).astype(np.float32)
    return biases
