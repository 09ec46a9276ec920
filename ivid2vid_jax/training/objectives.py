"""What is learned: each objective turns parameters and a batch into losses, one number a clip.

    losses(params, batch, keys, train, t=None) -> Losses

params: {"unet": tree, "vae": tree, "text_encoder": tree}. batch: see `data/loader.py`. keys: one PRNG key a clip, made from the clip's
serial number, so that noise and dropout depend neither on the order of rows nor on who computes them.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from ivid2vid_jax.diffusion import losses as diffusion
from ivid2vid_jax.diffusion.denoiser import Condition, make_denoiser
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.models import AutoencoderKL, CLIPModel, CLIPTextModel
from ivid2vid_jax.models.autoencoder import Posterior
from ivid2vid_jax.models.clip import l2_normalize, normalize_pixels
from ivid2vid_jax.training.config import CondDropoutConfig, TrainConfig
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, PipelineFolder


class Losses(NamedTuple):
    """total: [B], what is minimised. parts: name -> [B], logged. t: [B] timesteps in [0, 1000), or None."""

    total: jax.Array
    parts: dict[str, jax.Array]
    t: jax.Array | None = None


def make_objective(
    config: TrainConfig,
    folder: PipelineFolder | ClipFolder,
    null_tokens,
    dtype: Any,
    trained: Collection[str] = (),
):
    """The objective of `config.task` for the nets of a folder. null_tokens: int32 [K], the empty instruction's. trained: names of what is."""
    if config.task == "autoencoder":
        return Autoencoding(folder, config.autoencoder.kl, dtype)
    if config.task == "clip":
        return Contrastive(folder, dtype)
    return Denoising(
        config,
        folder,
        null_tokens,
        dtype,
        trains_text=any(name.startswith("text_encoder/") for name in trained),
    )


def to_pixels(frames_u8, dtype):
    """uint8 [0, 255] -> [-1, 1]."""
    return frames_u8.astype(dtype) / 127.5 - 1


class Denoising:
    """Noise or v prediction with the frame-difference loss: instruction editing, and text to image without a source clip.

    The source latent is the posterior's mode, unscaled; the target latent a posterior sample times the scaling factor. One timestep a
    clip, shared by its frames; independent noise for every frame.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: PipelineFolder,
        null_tokens,
        dtype: Any,
        trains_text: bool = False,
    ):
        self.loss, self.drop = config.loss, config.drop
        self.has_source = config.task == "edit"
        self.null_tokens, self.dtype = null_tokens, dtype
        self.scaling = folder.vae.scaling_factor
        schedule = NoiseSchedule.from_json(folder.scheduler)
        self.prediction_type, self.alphas_cumprod = (
            schedule.prediction_type,
            schedule.alphas_cumprod,
        )
        self.vae, self.text_encoder = (
            AutoencoderKL(folder.vae, dtype),
            CLIPTextModel(folder.text_encoder, dtype),
        )
        self.denoise, self.denoise_train = (
            make_denoiser(
                folder.unet, config.optim.attention, config.optim.remat, dtype, train=train
            )
            for train in (False, True)
        )
        self.dropout = folder.unet.temporal_dropout > 0
        self.trains_text = trains_text  # cached embeddings would be out of date

    def losses(self, params, batch, keys, train: bool, t=None) -> Losses:
        """t: [B] int32 timesteps; None draws them. train: with conditioning dropout."""
        k_t, k_noise, k_drop, k_posterior, k_net = jnp.moveaxis(
            jax.vmap(lambda key: random.split(key, 5))(keys), 1, 0
        )
        x0 = (
            jax.vmap(lambda mean, std, key: Posterior(mean, std).sample(key))(
                *self.posterior(params, batch, "target"), k_posterior
            )
            * self.scaling
        )
        table = jnp.asarray(self.alphas_cumprod, x0.dtype)
        if t is None:
            t = jax.vmap(lambda key: random.randint(key, (), 0, len(table)))(k_t)
        alpha_bar = table[t]
        noise = jax.vmap(lambda key: random.normal(key, x0.shape[1:], x0.dtype))(k_noise)
        x_t, wanted = (
            diffusion.add_noise(x0, noise, alpha_bar),
            diffusion.prediction_target(x0, noise, alpha_bar, self.prediction_type),
        )
        cond = self.condition(params, batch, k_drop if train else None)
        denoise = self.denoise_train if train and self.dropout else self.denoise
        prediction = denoise(params["unet"], x_t, t, cond, rngs={"dropout": k_net[0]})

        noise_loss = diffusion.mse_per_clip(prediction - wanted)
        frame_loss = diffusion.frame_difference(
            x_t, prediction, wanted, alpha_bar, self.prediction_type, self.loss
        )
        weight = diffusion.timestep_weight(alpha_bar, self.prediction_type, self.loss)
        total = weight * (noise_loss + self.loss.frame_weight * frame_loss)
        return Losses(total, {"noise_loss": noise_loss, "frame_loss": frame_loss}, t)

    def posterior(self, params, batch, which: str) -> Posterior:
        """Of the "source" or the "target" clip, [B, T, h, w, C], from cached latents or from pixels. No gradient flows into the VAE."""
        if f"{which}_mean" in batch:
            dtype = jnp.promote_types(self.dtype, jnp.float32)
            return Posterior(
                batch[f"{which}_mean"].astype(dtype),
                batch.get(f"{which}_std", batch[f"{which}_mean"]).astype(dtype),
            )
        pixels = batch["source" if which == "source" else "edited" if "edited" in batch else "clip"]
        B, T = pixels.shape[:2]
        frames = to_pixels(pixels.reshape(B * T, *pixels.shape[2:]), self.dtype)
        found = self.vae.apply({"params": params["vae"]}, frames, method=self.vae.encode)
        return jax.tree.map(lambda x: jax.lax.stop_gradient(x).reshape(B, T, *x.shape[1:]), found)

    def condition(self, params, batch, k_drop) -> Condition:
        """Text and source latents, parts of them dropped where k_drop [B] is given: the text becomes the empty one's, the source zero."""
        text, null = self.text(params, batch)
        source = self.posterior(params, batch, "source").mode() if self.has_source else None
        if k_drop is None:
            return Condition(text, source)
        drop_text, drop_video = condition_dropout(jax.vmap(random.uniform)(k_drop), self.drop)
        text = jnp.where(drop_text[:, None, None], null[None], text)
        if source is not None:
            source = jnp.where(drop_video[:, None, None, None, None], 0.0, source)
        return Condition(text, source)

    def text(self, params, batch):
        """Embeddings of the instructions [B, K, D] and of the empty one [K, D]."""
        tokens = jnp.asarray(self.null_tokens, jnp.int32)[None]
        cached = "text" in batch and not self.trains_text
        if not cached:
            tokens = jnp.concatenate([tokens, batch["tokens"]])
        out = self.text_encoder.apply({"params": params["text_encoder"]}, tokens)
        return (batch["text"].astype(out.dtype) if cached else out[1:]), out[0]


def condition_dropout(r_B, drop: CondDropoutConfig):
    """One draw a clip, r in [0, 1): below `text` the text only, then `both`, then `video` only -> (drop_text, drop_video), [B] bool."""
    text_end, both_end, video_end = (
        drop.text,
        drop.text + drop.both,
        drop.text + drop.both + drop.video,
    )
    return r_B < both_end, (r_B >= text_end) & (r_B < video_end)


@dataclasses.dataclass
class Autoencoding:
    """The autoencoder: mean absolute error of the reconstruction from a posterior sample, and a little KL divergence."""

    folder: PipelineFolder
    kl: float
    dtype: Any

    def losses(self, params, batch, keys, train: bool, t=None) -> Losses:
        vae, clip = AutoencoderKL(self.folder.vae, self.dtype), batch["clip"]
        B, T = clip.shape[:2]
        pixels = to_pixels(
            clip.reshape(B * T, *clip.shape[2:]), jnp.promote_types(self.dtype, jnp.float32)
        )
        mean, std = vae.apply({"params": params["vae"]}, pixels, method=vae.encode)
        mean, std = (x.reshape(B, T, *x.shape[1:]) for x in (mean, std))
        latents = (
            jax.vmap(lambda m, s, key: Posterior(m, s).sample(key))(mean, std, keys)
            if train
            else mean
        )
        found = vae.apply(
            {"params": params["vae"]}, latents.reshape(B * T, *latents.shape[2:]), method=vae.decode
        )
        error = (found - pixels).reshape(B, -1)
        divergence = 0.5 * (jnp.square(mean) + jnp.square(std) - 1 - 2 * jnp.log(std))
        # a pixel, not a latent, so that the weight means the same for every size of latent
        kl = divergence.reshape(B, -1).sum(1) / error.shape[1]
        l1 = jnp.abs(error).mean(1)
        parts = {
            "l1": l1,
            "kl": kl,
            "mse": jnp.square(error).mean(1),
            "latent_square": jnp.square(mean).reshape(B, -1).mean(1),
        }
        return Losses(l1 + self.kl * kl, parts)


MAX_LOGIT_SCALE = 100.0  # of the logits; CLIP's own limit


@dataclasses.dataclass
class Contrastive:
    """CLIP: every clip must find its caption among the batch's, and every caption its clip. Clips of the same caption do not compete.

    A clip's embedding is the mean of its frames'. The clips of a batch see each other: with --optim.accumulation only those of a micro-batch.
    """

    folder: ClipFolder
    dtype: Any

    def losses(self, params, batch, keys, train: bool, t=None) -> Losses:
        model, clip, tokens = (
            CLIPModel(self.folder.clip, self.dtype),
            batch["clip"],
            batch["tokens"],
        )
        B, T = clip.shape[:2]
        mean, std = (self.folder.preprocessor[name] for name in ("image_mean", "image_std"))
        pixels = normalize_pixels(clip.reshape(B * T, *clip.shape[2:]), mean, std, self.dtype)
        images, texts, scale = model.apply({"params": params["clip"]}, pixels, tokens)
        images, scale = (
            l2_normalize(images.reshape(B, T, -1).mean(1)),
            jnp.minimum(scale, MAX_LOGIT_SCALE),
        )
        logits = scale * jnp.matmul(images, texts.T, precision="highest")
        same = (tokens[:, None] == tokens[None]).all(-1) & ~jnp.eye(B, dtype=bool)
        logits = jnp.where(same, -jnp.inf, logits)
        own = jnp.diagonal(logits)
        by_image, by_text = (jax.nn.logsumexp(logits, axis=axis) - own for axis in (1, 0))
        retrieved = (logits.argmax(1) == jnp.arange(B)).astype(own.dtype)
        return Losses(
            (by_image + by_text) / 2,
            {"retrieved": retrieved, "scale": jnp.broadcast_to(scale, (B,))},
        )
