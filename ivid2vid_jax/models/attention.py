"""Attention: one function for every backend, and the module around it.

Shape letters: B batch, Q query tokens, K key tokens, H heads, D head width, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.layers import Dense, precise

IMPLEMENTATIONS = ("auto", "xla", "pointwise")
SHORT = 16  # keys up to which "pointwise" wins on CPU


def attention(q_BQHD, k_BKHD, v_BKHD, impl: str = "auto"):
    """softmax(q k^T / sqrt(D)) v, without a mask.

    q_BQHD: [B, Q, H, D]; k_BKHD, v_BKHD: [B, K, H, D]. Returns [B, Q, H, D] in q's dtype.
    Logits are accumulated and the softmax is taken in float32 whatever the input's dtype (so Stable Diffusion 2.1's
    `upcast_attention` holds always).
    Raises ValueError for an unknown `impl`.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "auto":
        impl = "pointwise" if k_BKHD.shape[1] <= SHORT and q_BQHD.shape[1] <= SHORT and jax.default_backend() == "cpu" else "xla"
    q_BQHD = q_BQHD * (q_BQHD.shape[-1] ** -0.5)
    if impl == "pointwise":
        return pointwise(q_BQHD, k_BKHD, v_BKHD)
    logits_BHQK = jnp.einsum("BQHD,BKHD->BHQK", q_BQHD, k_BKHD, preferred_element_type=precise(q_BQHD.dtype))
    weights_BHQK = jax.nn.softmax(logits_BHQK, axis=-1).astype(v_BKHD.dtype)
    return jnp.einsum("BHQK,BKHD->BQHD", weights_BHQK, v_BKHD)


def pointwise(q_BQHD, k_BKHD, v_BKHD):
    """The same by products and sums instead of matrix products: XLA on CPU runs many tiny ones 4 times slower, backwards too.

    Work and (unless fused) memory grow as B Q K H D, so it is for sequences of a few frames.
    """
    precision = precise(q_BQHD.dtype)
    logits_BQKH = jnp.sum(q_BQHD[:, :, None] * k_BKHD[:, None], axis=-1, dtype=precision)
    weights_BQKH = jax.nn.softmax(logits_BQKH, axis=2).astype(v_BKHD.dtype)
    return jnp.sum(weights_BQKH[..., None] * v_BKHD[:, None], axis=2)


class Attention(nn.Module):
    """Multi-head attention with diffusers' parameter names (`to_q`, `to_k`, `to_v`, `to_out.0`).

    `__call__(x_BQC, context_BKC=None)`: [B, Q, C_in] and [B, K, C_context] (None: self-attention) -> [B, Q, out_features].
    """

    heads: int
    head_dim: int
    out_features: int
    qkv_bias: bool = False
    impl: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BQC, context_BKC=None):
        context_BKC = x_BQC if context_BKC is None else context_BKC
        inner = self.heads * self.head_dim

        def project(name, x):
            y = Dense(inner, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], self.heads, self.head_dim)

        out = attention(project("to_q", x_BQC), project("to_k", context_BKC), project("to_v", context_BKC), self.impl)
        return Dense(self.out_features, dtype=self.dtype, name="to_out.0")(out.reshape(*out.shape[:-2], inner))
