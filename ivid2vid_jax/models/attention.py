"""Attention: one function for every backend, and the module around it.

Shape letters: B batch, Q query tokens, K key tokens, H heads, D head width, C channels.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.models.layers import Dense, accum_dtype, is_16bit, platform
from ivid2vid_jax.models.sharded_reshape import auto_mesh_axes

POINTWISE_MAX_SEQ = 16  # queries and keys up to which "pointwise" wins on CPU
FLASH_MIN_SEQ = 1024  # queries and keys from which on scores are too many to be kept
CHUNK_BYTES = (
    2**28
)  # of the scores that "chunked" holds at a time, or those of LANES queries if they are more
SPLASH_MAX_HEAD_DIM = (
    256  # widest head of "splash": the autoencoder's single head of 512 does not fit a tile
)
LANES = 128  # of a TPU's registers: blocks are multiples of it
SPLASH_BLOCK_SIZES = (
    1024,
    512,
    384,
    256,
    128,
)  # rows and columns of a tile of "splash", the largest that divides the sequence


def attention(q_BQHD, k_BKHD, v_BKHD, impl: str = "auto"):
    """softmax(q k^T / sqrt(D)) v, without a mask.

    q_BQHD: [B, Q, H, D]; k_BKHD, v_BKHD: [B, K, H, D]. Returns [B, Q, H, D] in q's dtype.
    Logits are accumulated and the softmax is taken in float32 whatever the input's dtype (so Stable Diffusion 2.1's
    `upcast_attention` holds always).

    impl: "xla", matrix products; "pointwise", products and sums; "chunked", some queries at a time, recomputed in the backward pass;
    "splash", TPU: tiles in a pallas kernel, no scores in memory; "cudnn", the same on NVIDIA GPUs, 16-bit inputs only; "auto", by device
    and shape. Under a mesh (jax.set_mesh) the last three run on each device's own share of B.
    Raises ValueError for an unknown `impl`, and for a dtype or head width that cuDNN does not take.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    if impl == "auto":
        impl = select_backend(q_BQHD, k_BKHD, platform())
    compute = BACKENDS[impl]
    if impl in LOCAL:
        compute = shard_over_batch(compute, len(q_BQHD))
    return compute(q_BQHD * (q_BQHD.shape[-1] ** -0.5), k_BKHD, v_BKHD)


def select_backend(q_BQHD, k_BKHD, device: str) -> str:
    """The backend for these shapes on a "cpu", "tpu" or "gpu" ("cuda", "rocm")."""
    (Q, _, D), K = q_BQHD.shape[1:], k_BKHD.shape[1]
    if device in ("cpu", "tpu") and max(Q, K) <= POINTWISE_MAX_SEQ:
        return "pointwise"
    if min(Q, K) < FLASH_MIN_SEQ:
        return "xla"
    if device == "tpu" and D <= SPLASH_MAX_HEAD_DIM:
        return "splash"
    if (
        device in ("gpu", "cuda")
        and not cudnn_unsupported_reason(q_BQHD.dtype, D)
        and cuda_compute_capability() >= 8
    ):
        return "cudnn"
    return "chunked"


def cuda_compute_capability() -> float:
    """Of this process's NVIDIA GPU; cuDNN's flash attention is for 8.0 (Ampere) and newer, so not for Colab's T4."""
    return float(getattr(jax.local_devices()[0], "compute_capability", 0))


def xla_attention(q_BQHD, k_BKHD, v_BKHD):
    """Queries come scaled, here and below.

    On CPU scores lie as [B, H, K, Q], so that XLA's loops of the softmax run along queries, in vectors: forward 1.2 to 2 times as fast. On TPU, in 16
    bits, the softmax's division comes last: what lies in memory between the two products is then 16-bit, half of its traffic (docs/tpu-plan.md).
    """
    precision = accum_dtype(q_BQHD.dtype)
    if platform() == "cpu":
        logits_BHKQ = jnp.einsum(
            "BHKD,BHDQ->BHKQ",
            k_BKHD.swapaxes(1, 2),
            q_BQHD.transpose(0, 2, 3, 1),
            preferred_element_type=precision,
        )
        weights_BHKQ = jnp.exp(
            logits_BHKQ - jax.lax.stop_gradient(logits_BHKQ.max(2, keepdims=True))
        )
        out_BHDQ = jnp.einsum(
            "BHDK,BHKQ->BHDQ",
            v_BKHD.transpose(0, 2, 3, 1),
            weights_BHKQ.astype(v_BKHD.dtype),
            preferred_element_type=precision,
        )
        return (
            (out_BHDQ / weights_BHKQ.sum(2, keepdims=True))
            .astype(v_BKHD.dtype)
            .transpose(0, 3, 1, 2)
        )
    logits_BHQK = jnp.einsum("BQHD,BKHD->BHQK", q_BQHD, k_BKHD, preferred_element_type=precision)
    if platform() != "tpu" or not is_16bit(v_BKHD.dtype):
        return jnp.einsum(
            "BHQK,BKHD->BQHD", jax.nn.softmax(logits_BHQK, axis=-1).astype(v_BKHD.dtype), v_BKHD
        )
    weights_BHQK = jnp.exp(
        logits_BHQK - jax.lax.stop_gradient(logits_BHQK.max(-1, keepdims=True))
    ).astype(v_BKHD.dtype)
    total_BQH1 = weights_BHQK.astype(precision).sum(-1).swapaxes(1, 2)[..., None]
    out_BQHD = jnp.einsum("BHQK,BKHD->BQHD", weights_BHQK, v_BKHD, preferred_element_type=precision)
    return (out_BQHD / total_BQH1).astype(v_BKHD.dtype)


def pointwise_attention(q_BQHD, k_BKHD, v_BKHD):
    """By products and sums instead of matrix products: XLA on CPU runs many tiny ones 4 times slower, backwards too.

    Work and (unless fused) memory grow as B Q K H D, so it is for sequences of a few frames.
    """
    precision = accum_dtype(q_BQHD.dtype)
    logits_BQKH = jnp.sum(q_BQHD[:, :, None] * k_BKHD[:, None], axis=-1, dtype=precision)
    weights_BQKH = jax.nn.softmax(logits_BQKH, axis=2).astype(v_BKHD.dtype)
    return jnp.sum(weights_BQKH[..., None] * v_BKHD[:, None], axis=2)


def chunked_attention(q_BQHD, k_BKHD, v_BKHD):
    """Some queries at a time, so that CHUNK_BYTES of scores are held, or those of LANES queries; the backward pass computes them again."""
    B, Q, H, D = q_BQHD.shape
    row = B * H * k_BKHD.shape[1] * jnp.dtype(accum_dtype(q_BQHD.dtype)).itemsize
    size = min(Q, max(LANES, CHUNK_BYTES // row // LANES * LANES))
    count = -(-Q // size)
    padded = jnp.pad(q_BQHD, ((0, 0), (0, count * size - Q), (0, 0), (0, 0)))
    chunks = padded.reshape(B, count, size, H, D).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda q: xla_attention(q, k_BKHD, v_BKHD)), chunks)
    return out.swapaxes(0, 1).reshape(B, count * size, H, D)[:, :Q]


def splash_attention(q_BQHD, k_BKHD, v_BKHD):
    """Splash attention, jax's pallas kernel for TPUs; elsewhere it is interpreted, slowly. Ragged lengths are padded, padded keys masked."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    Q, K, H = q_BQHD.shape[1], k_BKHD.shape[1], q_BQHD.shape[2]
    more_q, more_k = -Q % LANES, -K % LANES
    q, k, v = (
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, 0)))
        for x, more in ((q_BQHD, more_q), (k_BKHD, more_k), (v_BKHD, more_k))
    )
    rows, columns = splash_block_size(Q + more_q), splash_block_size(K + more_k)
    inner = 512 if columns % 512 == 0 else columns
    layout = (
        kernel.QKVLayout.SEQ_MINOR if q.shape[-1] % LANES else kernel.QKVLayout.HEAD_DIM_MINOR
    )  # the innermost axis is padded to whole lanes
    sizes = kernel.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=inner,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=inner,
        block_q_dq=rows,
        block_kv_dq=columns,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    mask = masks.MultiHeadMask([masks.FullMask((Q + more_q, K + more_k))] * H)
    run = kernel.make_splash_mha_single_device(
        mask, block_sizes=sizes, interpret=platform() != "tpu"
    )
    segments = None
    if more_k:
        segments = kernel.SegmentIds(
            jnp.zeros(Q + more_q, jnp.int32), (jnp.arange(K + more_k) >= K).astype(jnp.int32)
        )
    out = jax.vmap(lambda q, k, v: run(q, k, v, segment_ids=segments))(q, k, v)
    return out[:, :, :Q].swapaxes(1, 2).astype(q_BQHD.dtype)


def splash_block_size(length: int) -> int:
    """The largest tile side that divides a padded length."""
    return next(size for size in SPLASH_BLOCK_SIZES if length % size == 0)


def cudnn_attention(q_BQHD, k_BKHD, v_BKHD):
    """CuDNN's flash attention."""
    if refusal := cudnn_unsupported_reason(q_BQHD.dtype, q_BQHD.shape[-1]):
        raise ValueError(
            f"attention implementation 'cudnn': {refusal}; choose auto, xla or chunked"
        )
    return jax.nn.dot_product_attention(q_BQHD, k_BKHD, v_BKHD, scale=1.0, implementation="cudnn")


def cudnn_unsupported_reason(dtype, head_dim: int) -> str:
    """What is wrong with a dtype or a head width, in words; empty where cuDNN takes both on every GPU that it supports."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 and float16, not {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > 128:
        return f"takes head widths that are multiples of 8 up to 128, not {head_dim}"
    return ""


BACKENDS = {
    "xla": xla_attention,
    "pointwise": pointwise_attention,
    "chunked": chunked_attention,
    "splash": splash_attention,
    "cudnn": cudnn_attention,
}
IMPLEMENTATIONS = ("auto", *BACKENDS)
LOCAL = ("chunked", "splash", "cudnn")  # which the compiler cannot split over devices by itself


def shard_over_batch(compute, batch: int):
    """`compute` on each device's share of the batch, under a mesh; by the leading axes of the mesh whose product divides it."""
    there = auto_mesh_axes()
    sizes = list(there.values())
    if math.prod(sizes) <= 1:
        return compute
    ways = max(n for n in range(len(sizes) + 1) if batch % math.prod(sizes[:n]) == 0)
    spec = P(
        tuple(there)[:ways] or None
    )  # a batch that nothing divides: each device does all of it
    return partial(
        jax.shard_map,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(spec,) * 3,
        out_specs=spec,
        check_vma=False,
    )(compute)


class Attention(nn.Module):
    """Multi-head attention with diffusers' parameter names (`to_q`, `to_k`, `to_v`, `to_out.0`).

    `__call__(x_BQC, context_BKC=None)`: [B, Q, C_in] and [B, K, C_context] (None: self-attention) -> [B, Q, out_features].
    gather: applied to the projected keys and values [B, K, H, D], so that each is projected once, however many queries' rows it serves.
    """

    heads: int
    head_dim: int
    out_features: int
    qkv_bias: bool = False
    impl: str = "auto"
    dtype: jnp.dtype = jnp.float32
    out_init: Any = nn.linear.default_kernel_init

    @nn.compact
    def __call__(self, x_BQC, context_BKC=None, gather=lambda x_BKHD: x_BKHD):
        context_BKC = x_BQC if context_BKC is None else context_BKC
        inner = self.heads * self.head_dim

        def project(name, x):
            y = Dense(inner, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], self.heads, self.head_dim)

        out = attention(
            project("to_q", x_BQC),
            gather(project("to_k", context_BKC)),
            gather(project("to_v", context_BKC)),
            self.impl,
        )
        return Dense(
            self.out_features, dtype=self.dtype, kernel_init=self.out_init, name="to_out.0"
        )(out.reshape(*out.shape[:-2], inner))
