"""CLIP's text encoder, as Stable Diffusion conditions on it (SD 1.x: ViT-L/14; SD 2.x: OpenCLIP ViT-H/14)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.config import from_json
from ivid2vid_jax.models.layers import Dense, gelu, precise
from ivid2vid_jax.models.transformer import layer_norm

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": gelu,
}


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
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"text encoder config: hidden_act={self.hidden_act!r} is not supported; choose from {', '.join(ACTIVATIONS)}")

    @classmethod
    def from_json(cls, config: dict) -> "CLIPTextConfig":
        return from_json(cls, config.get("text_config", config))

    def to_json(self) -> dict:
        return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **dataclasses.asdict(self)}


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
        return layer_norm("final_layer_norm", self.dtype)(x).astype(precise(self.dtype))


class Embeddings(nn.Module):
    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids):
        cfg = self.config
        if ids.shape[1] > cfg.max_position_embeddings:
            raise ValueError(f"{ids.shape[1]} tokens exceed the text encoder's {cfg.max_position_embeddings}")
        tokens = nn.Embed(cfg.vocab_size, cfg.hidden_size, dtype=self.dtype, name="token_embedding")(ids)
        places = nn.Embed(cfg.max_position_embeddings, cfg.hidden_size, dtype=self.dtype, name="position_embedding")
        return tokens + places(jnp.arange(ids.shape[1]))[None]


class Encoder(nn.Module):
    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for i in range(self.config.num_hidden_layers):
            x = Layer(self.config, self.dtype, name=f"layers.{i}")(x)
        return x


class Layer(nn.Module):
    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = x + CausalAttention(self.config.num_attention_heads, self.dtype, name="self_attn")(layer_norm("layer_norm1", self.dtype)(x))
        return x + MLP(self.config, self.dtype, name="mlp")(layer_norm("layer_norm2", self.dtype)(x))


class MLP(nn.Module):
    config: CLIPTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h = Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(ACTIVATIONS[self.config.hidden_act](h))


class CausalAttention(nn.Module):
    """Masked self-attention of at most 77 tokens: [B, L, C] -> [B, L, C]; softmax in float32."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        B, L, C = x.shape
        q, k, v = (
            Dense(C, dtype=self.dtype, name=name)(x).reshape(B, L, self.heads, C // self.heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * (C // self.heads) ** -0.5, k, preferred_element_type=precise(self.dtype))
        logits = jnp.where(jnp.tril(jnp.ones((L, L), bool))[None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, L, C)
        return Dense(C, dtype=self.dtype, name="out_proj")(out)
