"""CLIP (Radford et al. 2021, arXiv 2103.00020): the text encoder, and the two-tower model.

Stable Diffusion is conditioned on the text encoder (SD 1.x: ViT-L/14; SD 2.x: OpenCLIP ViT-H/14).
The two towers with their projections measure how well images and texts agree.

Shape letters: N images of S x S pixels, M texts of L tokens, C width of a tower, D width of the
shared embedding.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.config import config_from_json
from ivid2vid_jax.models.layers import Dense, accum_dtype, exact_float32, gelu
from ivid2vid_jax.models.transformer import layer_norm

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": gelu,
}


def check_activation(component: str, hidden_act: str) -> None:
    """Raises ValueError for an unsupported activation."""
    if hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"{component} config: hidden_act={hidden_act!r} is not supported; "
            f"choose from {', '.join(ACTIVATIONS)}"
        )


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of the text encoder, under transformers' names."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    # SD 2.x folders have 23: they omit the last of ViT-H's 24 layers.
    num_hidden_layers: int = 12

    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    # Kept for export only.
    projection_dim: int = 768

    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self):
        check_activation("text encoder", self.hidden_act)

    @classmethod
    def from_json(cls, config: dict) -> "CLIPTextConfig":
        """Reads the `config.json` of transformers' CLIPTextModel or CLIPModel."""
        return config_from_json(cls, config.get("text_config", config))

    def to_json(self) -> dict:
        """The config of transformers' CLIPTextModel."""
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **dataclasses.asdict(self),
        }


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the image encoder, under transformers' names."""

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
        """Reads the `vision_config` of transformers' CLIPModel."""
        return config_from_json(cls, config)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the width of the shared embedding; the defaults are ViT-L/14's."""

    text: CLIPTextConfig = CLIPTextConfig()
    vision: CLIPVisionConfig = CLIPVisionConfig()
    projection_dim: int = 768

    @classmethod
    def from_json(cls, config: dict) -> "CLIPConfig":
        """Reads the `config.json` of transformers' CLIPModel.

        Such a file omits what equals transformers' defaults, those of ViT-B/32.
        """
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
        """The config of transformers' CLIPModel."""
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
    """Embeds images and texts in a shared space."""

    config: CLIPConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Creates the submodules."""
        self.text_model = TextTransformer(self.config.text, self.dtype)
        self.vision_model = VisionTransformer(self.config.vision, self.dtype)
        self.text_projection = Dense(self.config.projection_dim, use_bias=False, dtype=self.dtype)
        self.visual_projection = Dense(self.config.projection_dim, use_bias=False, dtype=self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(LOGIT_SCALE), ())

    def __call__(self, pixels, ids):
        """Embeds normalised pixels [N, S, S, 3] and token ids [M, L].

        Returns embeddings [N, D] and [M, D] of unit length, and the scale of their products in
        CLIP's training.
        """
        return self.embed_images(pixels), self.embed_texts(ids), jnp.exp(self.logit_scale)

    def embed_images(self, pixels):
        """[N, S, S, 3] -> [N, D] of unit length."""
        return self.project_images(self.pool_images(pixels))

    @exact_float32
    def pool_images(self, pixels):
        """[N, S, S, 3] -> [N, C], before the projection (transformers' pooler_output)."""
        return self.vision_model(pixels)

    @exact_float32
    def project_images(self, pooled):
        """[N, C] -> [N, D] of unit length."""
        return l2_normalize(self.visual_projection(pooled))

    @exact_float32
    def embed_texts(self, ids):
        """[M, L] -> [M, D] of unit length, from the state at the end-of-text token.

        OpenAI's configs name id 2, which is not that token; there it is the largest id.
        """
        eos = self.config.text.eos_token_id
        ends = ids.argmax(-1) if eos == 2 else (ids == eos).argmax(-1)
        states = self.text_model(ids)
        pooled = jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0]
        return l2_normalize(self.text_projection(pooled))


LOGIT_SCALE = 2.6592  # initial value: log(1 / 0.07)


def l2_normalize(x):
    """Scales the last axis to unit length, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def normalize_pixels(frames, mean, std, dtype=jnp.float32):
    """The input of the image encoder: frames scaled to [0, 1], minus `mean`, divided by `std`.

    In float32 even if the network computes in `dtype` bfloat16. frames: uint8 [N, S, S, 3]; mean,
    std: one number per channel.
    """
    dtype = jnp.promote_types(dtype, jnp.float32)
    mean, std = (jnp.asarray(stat, dtype).reshape(1, 1, 1, 3) for stat in (mean, std))
    return (frames.astype(dtype) / 255 - mean) / std


class VisionTransformer(nn.Module):
    """The image encoder (ViT)."""

    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixels):
        """[N, S, S, 3] -> the class token's last state [N, C]."""
        x = PatchEmbeddings(self.config, self.dtype, name="embeddings")(pixels)
        x = layer_norm("pre_layrnorm", self.dtype)(x)  # misspelt in every published checkpoint
        x = Encoder(self.config, self.dtype, causal=False, name="encoder")(x)
        return layer_norm("post_layernorm", self.dtype)(x[:, 0])


class PatchEmbeddings(nn.Module):
    """Embeddings of the class token and the patches, plus position embeddings."""

    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixels):
        """[N, S, S, 3] -> [N, 1 + patches, C]. Raises ValueError for another image size."""
        cfg = self.config
        N, height, width, _ = pixels.shape
        if (height, width) != (cfg.image_size, cfg.image_size):
            raise ValueError(
                f"the image encoder takes {cfg.image_size} x {cfg.image_size} pixels, "
                f"got {height} x {width}"
            )
        patch_embedding = nn.Conv(
            cfg.hidden_size,
            kernel_size=(cfg.patch_size, cfg.patch_size),
            strides=(cfg.patch_size, cfg.patch_size),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )
        patches = patch_embedding(pixels).reshape(N, -1, cfg.hidden_size)
        token = self.param("class_embedding", nn.initializers.zeros, (cfg.hidden_size,))
        token = jnp.broadcast_to(token.astype(patches.dtype), (N, 1, cfg.hidden_size))
        x = jnp.concatenate([token, patches], axis=1)
        return x + position_embeddings(x.shape[1], x.shape[1], cfg, self.dtype)


class CLIPTextModel(nn.Module):
    """The text encoder. Attention is causal; padding is not masked."""

    config: CLIPTextConfig
    dtype: Any = jnp.float32

    @nn.compact
    @exact_float32
    def __call__(self, ids):
        """[M, L] -> last hidden states [M, L, C], after the final norm."""
        return TextTransformer(self.config, self.dtype, name="text_model")(ids)


class TextTransformer(nn.Module):
    """The text encoder below its key prefix `text_model`."""

    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids):
        """[M, L] -> [M, L, C]."""
        x = Embeddings(self.config, self.dtype, name="embeddings")(ids)
        x = Encoder(self.config, self.dtype, name="encoder")(x)
        return layer_norm("final_layer_norm", self.dtype)(x).astype(accum_dtype(self.dtype))


class Embeddings(nn.Module):
    """Token embeddings plus position embeddings."""

    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids):
        """[M, L] -> [M, L, C]. Raises ValueError for too many tokens."""
        cfg, length = self.config, ids.shape[1]
        if length > cfg.max_position_embeddings:
            raise ValueError(
                f"{length} tokens exceed the text encoder's {cfg.max_position_embeddings}"
            )
        token_embedding = nn.Embed(
            cfg.vocab_size, cfg.hidden_size, dtype=self.dtype, name="token_embedding"
        )
        tokens = token_embedding(ids)
        return tokens + position_embeddings(length, cfg.max_position_embeddings, cfg, self.dtype)


def position_embeddings(length: int, max_length: int, config, dtype):
    """The first `length` learned position embeddings, inside the calling module: [1, length, C]."""
    table = nn.Embed(max_length, config.hidden_size, dtype=dtype, name="position_embedding")
    return table(jnp.arange(length))[None]


class Encoder(nn.Module):
    """The transformer layers of either tower."""

    config: CLIPTextConfig | CLIPVisionConfig
    dtype: Any
    causal: bool = True

    @nn.compact
    def __call__(self, x):
        """[N, L, C] -> the same shape."""
        for i in range(self.config.num_hidden_layers):
            x = EncoderLayer(self.config, self.dtype, self.causal, name=f"layers.{i}")(x)
        return x


class EncoderLayer(nn.Module):
    """Self-attention and an MLP, each with pre-norm and residual connection."""

    config: CLIPTextConfig | CLIPVisionConfig
    dtype: Any
    causal: bool

    @nn.compact
    def __call__(self, x):
        """[N, L, C] -> the same shape."""
        heads = self.config.num_attention_heads
        self_attention = SelfAttention(heads, self.dtype, self.causal, name="self_attn")
        x = x + self_attention(layer_norm("layer_norm1", self.dtype)(x))
        mlp = MLP(self.config, self.dtype, name="mlp")
        return x + mlp(layer_norm("layer_norm2", self.dtype)(x))


class MLP(nn.Module):
    """Dense - activation - dense."""

    config: CLIPTextConfig | CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[N, L, C] -> the same shape."""
        h = Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        h = ACTIVATIONS[self.config.hidden_act](h)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class SelfAttention(nn.Module):
    """Self-attention over at most a few hundred tokens, with the softmax in float32.

    Attributes:
        causal: masks later tokens.
    """

    heads: int
    dtype: Any
    causal: bool

    @nn.compact
    def __call__(self, x):
        """[N, L, C] -> the same shape."""
        N, L, C = x.shape
        H, D = self.heads, C // self.heads
        q, k, v = (
            Dense(C, dtype=self.dtype, name=name)(x).reshape(N, L, H, D)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        logits = jnp.einsum(
            "NQHD,NKHD->NHQK", q * D**-0.5, k, preferred_element_type=accum_dtype(self.dtype)
        )
        if self.causal:
            logits = jnp.where(jnp.tril(jnp.ones((L, L), bool))[None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = jnp.einsum("NHQK,NKHD->NQHD", weights, v).reshape(N, L, C)
        return Dense(C, dtype=self.dtype, name="out_proj")(out)
