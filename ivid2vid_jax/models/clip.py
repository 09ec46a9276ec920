"""CLIP (Radford et al. 2021): its text encoder, as Stable Diffusion conditions on it (SD 1.x: ViT-L/14; SD 2.x: OpenCLIP ViT-H/14), and both
towers with their projections, which score how well images and texts agree.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.config import config_from_json
from ivid2vid_jax.models.layers import Dense, accum_dtype, gelu
from ivid2vid_jax.models.transformer import layer_norm

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": gelu,
}


def check_activation(what: str, hidden_act: str) -> None:
    """ValueError for an activation that is not known here."""
    if hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"{what} config: hidden_act={hidden_act!r} is not supported; choose from {', '.join(ACTIVATIONS)}"
        )


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of the text tower, under transformers' names."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12  # SD 2.x folders say 23: the last of ViT-H's 24 layers is left out
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768  # kept for export
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self):
        check_activation("text encoder", self.hidden_act)

    @classmethod
    def from_json(cls, config: dict) -> "CLIPTextConfig":
        return config_from_json(cls, config.get("text_config", config))

    def to_json(self) -> dict:
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **dataclasses.asdict(self),
        }


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the image tower, under transformers' names."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        check_activation("image encoder", self.hidden_act)

    @classmethod
    def from_json(cls, config: dict) -> "CLIPVisionConfig":
        return config_from_json(cls, config)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the space they share; the defaults are ViT-L/14's."""

    text: CLIPTextConfig = CLIPTextConfig()
    vision: CLIPVisionConfig = CLIPVisionConfig()
    projection_dim: int = 768

    @classmethod
    def from_json(cls, config: dict) -> "CLIPConfig":
        """Of a transformers CLIPModel's config.json, which leaves out what is ViT-B/32's, transformers' default."""
        text = {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "eos_token_id": 49407,
        } | config.get("text_config", {})
        vision = {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 32,
        }
        return cls(
            CLIPTextConfig.from_json(text),
            CLIPVisionConfig.from_json(vision | config.get("vision_config", {})),
            config.get("projection_dim", 512),
        )

    def to_json(self) -> dict:
        towers = {
            "text_config": self.text.to_json(),
            "vision_config": {"model_type": "clip_vision_model", **dataclasses.asdict(self.vision)},
        }
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            **towers,
        }


class CLIPModel(nn.Module):
    """Images and texts in one space: (pixels [N, S, S, 3] normalised, ids [M, L]) -> embeddings [N, D] and [M, D] of length 1, and the scale
    that CLIP was trained to multiply their products with.
    """

    config: CLIPConfig
    dtype: Any = jnp.float32

    def setup(self):
        self.text_model = TextTransformer(self.config.text, self.dtype)
        self.vision_model = VisionTransformer(self.config.vision, self.dtype)
        self.text_projection = Dense(self.config.projection_dim, use_bias=False, dtype=self.dtype)
        self.visual_projection = Dense(self.config.projection_dim, use_bias=False, dtype=self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(LOGIT_SCALE), ())

    def __call__(self, pixels, ids):
        return self.embed_images(pixels), self.embed_texts(ids), jnp.exp(self.logit_scale)

    def embed_images(self, pixels):
        """[N, S, S, 3] -> [N, D] of length 1."""
        return self.project_images(self.pool_images(pixels))

    def pool_images(self, pixels):
        """[N, S, S, 3] -> [N, hidden_size], the image tower's state before the projection (transformers' pooler_output)."""
        return self.vision_model(pixels)

    def project_images(self, pooled):
        """[N, hidden_size] -> [N, D] of length 1."""
        return l2_normalize(self.visual_projection(pooled))

    def embed_texts(self, ids):
        """[M, L] -> [M, D] of length 1: the state at the end mark, which is the largest id where the config names none (id 2, as OpenAI's do)."""
        eos = self.config.text.eos_token_id
        ends = ids.argmax(-1) if eos == 2 else (ids == eos).argmax(-1)
        states = self.text_model(ids)
        return l2_normalize(
            self.text_projection(jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0])
        )


LOGIT_SCALE = 2.6592  # log(1 / 0.07)


def l2_normalize(x):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def normalize_pixels(frames, mean, std, dtype=jnp.float32):
    """uint8 [N, S, S, 3] -> what the image tower takes: [0, 1] less the mean, over the standard deviation, both a number a channel."""
    mean, std = (jnp.asarray(each, dtype).reshape(1, 1, 1, 3) for each in (mean, std))
    return (frames.astype(dtype) / 255 - mean) / std


class VisionTransformer(nn.Module):
    """pixels [N, S, S, 3] -> the class token's last state [N, hidden_size]."""

    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixels):
        x = PatchEmbeddings(self.config, self.dtype, name="embeddings")(pixels)
        x = layer_norm("pre_layrnorm", self.dtype)(x)  # so spelt in every published checkpoint
        x = Encoder(self.config, self.dtype, causal=False, name="encoder")(x)
        return layer_norm("post_layernorm", self.dtype)(x[:, 0])


class PatchEmbeddings(nn.Module):
    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixels):
        cfg = self.config
        if pixels.shape[1:3] != (cfg.image_size, cfg.image_size):
            raise ValueError(
                f"images of {pixels.shape[1]} x {pixels.shape[2]} pixels where the image encoder takes {cfg.image_size} x {cfg.image_size}"
            )
        patch = (cfg.patch_size, cfg.patch_size)
        x = nn.Conv(
            cfg.hidden_size,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels)
        x = x.reshape(len(pixels), -1, cfg.hidden_size)
        first = self.param("class_embedding", nn.initializers.zeros, (cfg.hidden_size,)).astype(
            x.dtype
        )
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, cfg.hidden_size)), x], axis=1)
        places = nn.Embed(x.shape[1], cfg.hidden_size, dtype=self.dtype, name="position_embedding")
        return x + places(jnp.arange(x.shape[1]))[None]


class CLIPTextModel(nn.Module):
    """ids [B, L] -> last hidden state [B, L, hidden_size], final norm applied; attention is causal, padding is not masked."""

    config: CLIPTextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids):
        return TextTransformer(self.config, self.dtype, name="text_model")(ids)


class TextTransformer(nn.Module):
    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids):
        x = Embeddings(self.config, self.dtype, name="embeddings")(ids)
        x = Encoder(self.config, self.dtype, name="encoder")(x)
        return layer_norm("final_layer_norm", self.dtype)(x).astype(accum_dtype(self.dtype))


class Embeddings(nn.Module):
    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids):
        cfg = self.config
        if ids.shape[1] > cfg.max_position_embeddings:
            raise ValueError(
                f"{ids.shape[1]} tokens exceed the text encoder's {cfg.max_position_embeddings}"
            )
        tokens = nn.Embed(
            cfg.vocab_size, cfg.hidden_size, dtype=self.dtype, name="token_embedding"
        )(ids)
        places = nn.Embed(
            cfg.max_position_embeddings,
            cfg.hidden_size,
            dtype=self.dtype,
            name="position_embedding",
        )
        return tokens + places(jnp.arange(ids.shape[1]))[None]


class Encoder(nn.Module):
    config: CLIPTextConfig | CLIPVisionConfig
    dtype: Any
    causal: bool = True

    @nn.compact
    def __call__(self, x):
        for i in range(self.config.num_hidden_layers):
            x = EncoderLayer(self.config, self.dtype, self.causal, name=f"layers.{i}")(x)
        return x


class EncoderLayer(nn.Module):
    config: CLIPTextConfig | CLIPVisionConfig
    dtype: Any
    causal: bool

    @nn.compact
    def __call__(self, x):
        x = x + SelfAttention(
            self.config.num_attention_heads, self.dtype, self.causal, name="self_attn"
        )(layer_norm("layer_norm1", self.dtype)(x))
        return x + MLP(self.config, self.dtype, name="mlp")(
            layer_norm("layer_norm2", self.dtype)(x)
        )


class MLP(nn.Module):
    config: CLIPTextConfig | CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h = Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(
            ACTIVATIONS[self.config.hidden_act](h)
        )


class SelfAttention(nn.Module):
    """Self-attention over a few hundred tokens at most: [B, L, C] -> [B, L, C]; softmax in float32. causal: none sees those after it."""

    heads: int
    dtype: Any
    causal: bool

    @nn.compact
    def __call__(self, x):
        B, L, C = x.shape
        q, k, v = (
            Dense(C, dtype=self.dtype, name=name)(x).reshape(B, L, self.heads, C // self.heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        logits = jnp.einsum(
            "bqhd,bkhd->bhqk",
            q * (C // self.heads) ** -0.5,
            k,
            preferred_element_type=accum_dtype(self.dtype),
        )
        if self.causal:
            logits = jnp.where(jnp.tril(jnp.ones((L, L), bool))[None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, L, C)
        return Dense(C, dtype=self.dtype, name="out_proj")(out)
