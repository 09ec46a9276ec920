"""Training objectives: parameters and a batch -> one loss per clip.

    objective.losses(params, batch, keys, train, t=None) -> Losses

params: {"unet": tree, "vae": tree, "text_encoder": tree} or {"clip": tree}. batch: see
`data/loader.py`. keys: one PRNG key per clip, derived from the clip's serial number, so that noise
and dropout depend neither on the order of the batch's rows nor on their distribution over devices.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from ivid2vid_jax.diffusion import losses as diffusion
from ivid2vid_jax.diffusion.denoiser import Condition, make_denoiser
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.models import AutoencoderKL, CLIPModel, CLIPTextModel
from ivid2vid_jax.models.autoencoder import Posterior, to_pixels
from ivid2vid_jax.models.clip import l2_normalize, normalize_pixels
from ivid2vid_jax.training.config import (
    AutoencoderLossConfig,
    CondDropoutConfig,
    TrainConfig,
)
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, PipelineFolder


class Losses(NamedTuple):
    """The losses of a batch.

    Attributes:
        total: [B], minimised.
        parts: name -> [B], logged.
        t: [B] int32, timesteps in [0, 1000); None for objectives without noise.
    """

    total: jax.Array
    parts: dict[str, jax.Array]
    t: jax.Array | None = None


class Objective(Protocol):
    """What the training step and the validation know of an objective."""

    def losses(self, params, batch, keys, train: bool, t=None) -> Losses:
        """train: with dropout. t: int32 [B], timesteps; None samples them."""


def make_objective(
    config: TrainConfig,
    folder: PipelineFolder | ClipFolder,
    null_tokens: np.ndarray,
    dtype: Any,
    trained: Collection[str] = (),
) -> Objective:
    """The objective of `config.task`.

    Args:
        config: the training config.
        folder: the networks' configs.
        null_tokens: int32 [K], token ids of the empty instruction.
        dtype: compute precision.
        trained: names of the trained parameters.
    """
    if isinstance(folder, ClipFolder):
        return Contrastive(folder, dtype)
    if config.task == "autoencoder":
        return Autoencoding(folder, config.autoencoder, dtype)
    trains_text = any(name.startswith("text_encoder/") for name in trained)
    return Denoising(config, folder, null_tokens, dtype, trains_text)


class Denoising:
    """Noise or v prediction with the inter-frames consistency loss, for `edit` and `text_to_image`.

    The paper's inter-frames consistency loss is called frame difference loss in the first preprint.
    The condition is the mode of the source clip's posterior, not scaled; the target latent is a
    sample from the target clip's posterior times the scaling factor. Each clip has one timestep,
    shared by its frames, and independent noise for each frame.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: PipelineFolder,
        null_tokens: np.ndarray,
        dtype: Any,
        trains_text: bool = False,
    ):
        """See `make_objective`. trains_text: ignore cached embeddings, which would be stale."""
        self.loss, self.drop = config.loss, config.drop
        self.has_source = config.task == "edit"
        self.null_tokens, self.dtype = null_tokens, dtype
        self.scaling = folder.vae.scaling_factor
        schedule = NoiseSchedule.from_json(folder.scheduler)
        self.prediction_type = schedule.prediction_type
        self.alphas_cumprod = schedule.alphas_cumprod
        self.vae = AutoencoderKL(folder.vae, dtype)
        self.text_encoder = CLIPTextModel(folder.text_encoder, dtype)
        self.denoise, self.denoise_train = (
            make_denoiser(
                folder.unet, config.optim.attention, config.optim.remat, dtype, train=train
            )
            for train in (False, True)
        )
        self.dropout = folder.unet.temporal_dropout > 0
        self.trains_text = trains_text

    def losses(self, params, batch, keys, train: bool, t=None) -> Losses:
        """train: with conditioning dropout. t: [B] int32; None samples timesteps uniformly."""
        k_t, k_noise, k_drop, k_posterior, k_net = jnp.moveaxis(
            jax.vmap(lambda key: random.split(key, 5))(keys), 1, 0
        )
        mean, std = self.posterior(params, batch, "target")
        sample = jax.vmap(lambda mean, std, key: Posterior(mean, std).sample(key))
        x0 = sample(mean, std, k_posterior) * self.scaling
        alphas_cumprod = jnp.asarray(self.alphas_cumprod, x0.dtype)
        if t is None:
            t = jax.vmap(lambda key: random.randint(key, (), 0, len(alphas_cumprod)))(k_t)
        alpha_bar = alphas_cumprod[t]
        noise = jax.vmap(lambda key: random.normal(key, x0.shape[1:], x0.dtype))(k_noise)
        x_t = diffusion.add_noise(x0, noise, alpha_bar)
        target = diffusion.prediction_target(x0, noise, alpha_bar, self.prediction_type)
        cond = self.condition(params, batch, k_drop if train else None)
        denoise = self.denoise_train if train and self.dropout else self.denoise
        prediction = denoise(params["unet"], x_t, t, cond, rngs={"dropout": k_net[0]})

        noise_loss = diffusion.mse_per_clip(prediction - target)
        frame_loss = diffusion.frame_difference(
            x_t, prediction, target, alpha_bar, self.prediction_type, self.loss
        )
        weight = diffusion.timestep_weight(alpha_bar, self.prediction_type, self.loss)
        total = weight * (noise_loss + self.loss.frame_weight * frame_loss)
        return Losses(total, {"noise_loss": noise_loss, "frame_loss": frame_loss}, t)

    def posterior(self, params, batch, which: str) -> Posterior:
        """The posterior of the "source" or "target" clip, [B, T, h, w, C], without gradients.

        From the batch's cached latents if it has any, else from its pixels.
        """
        if f"{which}_mean" in batch:
            dtype = jnp.promote_types(self.dtype, jnp.float32)
            mean = batch[f"{which}_mean"]
            # The std of source clips is not cached: only their mode is used.
            std = batch.get(f"{which}_std", mean)
            return Posterior(mean.astype(dtype), std.astype(dtype))
        pixels = batch["source" if which == "source" else "edited" if "edited" in batch else "clip"]
        B, T = pixels.shape[:2]
        frames = to_pixels(pixels.reshape(B * T, *pixels.shape[2:]), self.dtype)
        posterior = self.vae.apply({"params": params["vae"]}, frames, method=self.vae.encode)
        return jax.tree.map(
            lambda x: jax.lax.stop_gradient(x).reshape(B, T, *x.shape[1:]), posterior
        )

    def condition(self, params, batch, k_drop) -> Condition:
        """Text embeddings and source latents, with conditioning dropout by the keys k_drop [B].

        A dropped text becomes the empty text, a dropped source zero. k_drop = None drops nothing.
        """
        source = self.posterior(params, batch, "source").mode() if self.has_source else None
        if k_drop is None:
            return Condition(self.text(params, batch), source)
        drop_text, drop_video = condition_dropout(jax.vmap(random.uniform)(k_drop), self.drop)
        text = self.text(params, batch, drop_text)
        if source is not None:
            source = jnp.where(drop_video[:, None, None, None, None], 0.0, source)
        return Condition(text, source)

    def text(self, params, batch, drop=None):
        """Embeddings of the instructions, [B, K, D]; of the empty one where drop, bool [B]."""

        def encode(tokens):
            return self.text_encoder.apply({"params": params["text_encoder"]}, tokens)

        null = jnp.asarray(self.null_tokens, jnp.int32)[None]
        if "text" in batch and not self.trains_text:
            text = batch["text"].astype(self.dtype)
            return text if drop is None else jnp.where(drop[:, None, None], encode(null), text)
        # The empty text replaces tokens: one more row would move the others between devices.
        tokens = batch["tokens"]
        return encode(tokens if drop is None else jnp.where(drop[:, None], null, tokens))


def condition_dropout(r_B: jax.Array, drop: CondDropoutConfig) -> tuple[jax.Array, jax.Array]:
    """(drop_text, drop_video), bool [B], from one uniform draw r in [0, 1) per clip.

    In ascending order of r: a share `text` drops only the text, `both` drops text and video,
    `video` drops only the video, the rest drops nothing.
    """
    text_end = drop.text
    both_end = drop.text + drop.both
    video_end = drop.text + drop.both + drop.video
    return r_B < both_end, (r_B >= text_end) & (r_B < video_end)


@dataclasses.dataclass
class Autoencoding:
    """The autoencoder: mean absolute error of the reconstruction + KL divergence + edge error.

    Training decodes a sample from the posterior, validation its mode.
    """

    folder: PipelineFolder
    config: AutoencoderLossConfig
    dtype: Any

    def losses(self, params, batch, keys, train: bool, t=None) -> Losses:
        """train: decode a posterior sample. t: not used."""
        vae, clip = AutoencoderKL(self.folder.vae, self.dtype), batch["clip"]
        B, T = clip.shape[:2]
        pixels = to_pixels(clip.reshape(B * T, *clip.shape[2:]), self.dtype)
        mean, std = vae.apply({"params": params["vae"]}, pixels, method=vae.encode)
        mean, std = (x.reshape(B, T, *x.shape[1:]) for x in (mean, std))
        latents = (
            jax.vmap(lambda m, s, key: Posterior(m, s).sample(key))(mean, std, keys)
            if train
            else mean
        )
        reconstruction = vae.apply(
            {"params": params["vae"]}, latents.reshape(B * T, *latents.shape[2:]), method=vae.decode
        )
        difference = reconstruction - pixels
        error = difference.reshape(B, -1)
        divergence = 0.5 * (jnp.square(mean) + jnp.square(std) - 1 - 2 * jnp.log(std))
        # Divided by the number of pixel values, not of latent values: so the weight has the same
        # meaning for every latent size.
        kl = divergence.reshape(B, -1).sum(1) / error.shape[1]
        l1 = jnp.abs(error).mean(1)
        edges = sum(
            jnp.abs(jnp.diff(difference, axis=axis)).reshape(B, -1).mean(1) for axis in (1, 2)
        )
        parts = {
            "l1": l1,
            "kl": kl,
            "edges": edges,
            "mse": jnp.square(error).mean(1),
            "latent_square": jnp.square(mean).reshape(B, -1).mean(1),
        }
        return Losses(l1 + self.config.kl * kl + self.config.gradient * edges, parts)


MAX_LOGIT_SCALE = 100.0  # CLIP's limit (Radford et al. 2021, section 2.5)


@dataclasses.dataclass
class Contrastive:
    """CLIP's symmetric contrastive loss between the clips and the captions of a batch.

    Clips with equal captions are not negatives of each other. The embedding of a clip is the mean
    over its frames. With --optim.accumulation the negatives are those of the micro-batch.
    """

    folder: ClipFolder
    dtype: Any

    def losses(self, params, batch, keys, train: bool, t=None) -> Losses:
        """The same in training and validation; keys and t: not used."""
        model = CLIPModel(self.folder.clip, self.dtype)
        clip, tokens = batch["clip"], batch["tokens"]
        B, T = clip.shape[:2]
        mean, std = (self.folder.preprocessor[name] for name in ("image_mean", "image_std"))
        pixels = normalize_pixels(clip.reshape(B * T, *clip.shape[2:]), mean, std, self.dtype)
        images, texts, scale = model.apply({"params": params["clip"]}, pixels, tokens)
        images = l2_normalize(images.reshape(B, T, -1).mean(1))
        scale = jnp.minimum(scale, MAX_LOGIT_SCALE)
        logits = scale * jnp.matmul(images, texts.T, precision="highest")
        duplicates = (tokens[:, None] == tokens[None]).all(-1) & ~jnp.eye(B, dtype=bool)
        logits = jnp.where(duplicates, -jnp.inf, logits)
        positives = jnp.diagonal(logits)
        by_image, by_text = (jax.nn.logsumexp(logits, axis=axis) - positives for axis in (1, 0))
        retrieved = (logits.argmax(1) == jnp.arange(B)).astype(positives.dtype)
        return Losses(
            (by_image + by_text) / 2,
            {"retrieved": retrieved, "scale": jnp.broadcast_to(scale, (B,))},
        )
