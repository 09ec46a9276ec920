"""Attention: one function with a backend for every platform, and the Flax module around it.

Shape letters: B batch, Q query tokens, K key tokens, H heads, D head width, C channels.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.models.layers import Dense, accum_dtype, is_16bit, platform
from ivid2vid_jax.models.sharded_reshape import auto_mesh_axes

# Longest sequence for which "pointwise" is the fastest on CPU and TPU.
POINTWISE_MAX_SEQ = 16
# Shortest sequence for which the full logits take too much memory.
FLASH_MIN_SEQ = 1024
# Bytes of logits that "chunked" holds at once (at least those of LANES queries).
CHUNK_BYTES = 2**28
# Lanes of a TPU's vector registers: sequences are padded to multiples of it.
LANES = 128
# Tile sides of "splash", largest first; the largest that divides the sequence is used.
SPLASH_BLOCK_SIZES = (1024, 512, 384, 256, 128)
# Widest head of "splash": the autoencoder's single head of 512 does not fit a tile.
SPLASH_MAX_HEAD_DIM = 256


def attention(q_BQHD, k_BKHD, v_BKHD, impl: str = "auto"):
    """softmax(q k^T / sqrt(D)) v, without a mask (Vaswani et al. 2017, arXiv 1706.03762).

    Logits are accumulated and the softmax is taken in float32 whatever the input's dtype, so
    Stable Diffusion 2.1's `upcast_attention` always holds. Under a mesh (jax.set_mesh) "chunked",
    "splash" and "cudnn" run on each device's part of the batch.

    Args:
        q_BQHD: queries [B, Q, H, D].
        k_BKHD: keys [B, K, H, D].
        v_BKHD: values [B, K, H, D].
        impl: the backend.
            "xla": two matrix products.
            "pointwise": elementwise products and sums, for very short sequences.
            "chunked": some queries at a time, recomputed in the backward pass.
            "splash": TPU flash attention in Pallas; no logits in memory.
            "cudnn": flash attention on NVIDIA GPUs; 16-bit inputs only.
            "auto": by platform and shapes, see `select_backend`.

    Returns:
        [B, Q, H, D] in the dtype of q.

    Raises:
        ValueError: for an unknown `impl`, and for a dtype or head width that cuDNN does not take.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {impl!r} is unknown; "
            f"choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    if impl == "auto":
        impl = select_backend(q_BQHD, k_BKHD, platform())
    backend = BACKENDS[impl]
    if impl in PER_DEVICE_BACKENDS:
        backend = shard_over_batch(backend, len(q_BQHD))
    D = q_BQHD.shape[-1]
    return backend(q_BQHD * (D**-0.5), k_BKHD, v_BKHD)


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
    """Compute capability of this process's NVIDIA GPU; 0 for other devices.

    cuDNN's flash attention needs 8.0 (Ampere), so Colab's T4 (7.5) does not have it. On ROCm JAX
    reports the name of the architecture, such as "gfx942".
    """
    capability = str(getattr(jax.local_devices()[0], "compute_capability", 0))
    return float(capability) if re.fullmatch(r"\d+(\.\d+)?", capability) else 0.0


# ---- Backends. All take queries that are scaled already.


def xla_attention(q_BQHD, k_BKHD, v_BKHD):
    """Attention by two matrix products, in the form that is fastest on the current platform."""
    if platform() == "cpu":
        return _xla_attention_cpu(q_BQHD, k_BKHD, v_BKHD)
    if platform() == "tpu" and is_16bit(v_BKHD.dtype):
        return _xla_attention_tpu_16bit(q_BQHD, k_BKHD, v_BKHD)
    precision = accum_dtype(q_BQHD.dtype)
    logits_BHQK = jnp.einsum("BQHD,BKHD->BHQK", q_BQHD, k_BKHD, preferred_element_type=precision)
    weights_BHQK = jax.nn.softmax(logits_BHQK, axis=-1).astype(v_BKHD.dtype)
    return jnp.einsum("BHQK,BKHD->BQHD", weights_BHQK, v_BKHD)


def _xla_attention_cpu(q_BQHD, k_BKHD, v_BKHD):
    """Attention with the logits stored as [B, H, keys, queries].

    XLA's softmax loops then run along queries, vectorised: the forward pass is 1.2 to 2 times as
    fast.
    """
    precision = accum_dtype(q_BQHD.dtype)
    k_BHKD, q_BHDQ = k_BKHD.swapaxes(1, 2), q_BQHD.transpose(0, 2, 3, 1)
    logits_BHKQ = jnp.einsum("BHKD,BHDQ->BHKQ", k_BHKD, q_BHDQ, preferred_element_type=precision)
    max_BH1Q = jax.lax.stop_gradient(logits_BHKQ.max(2, keepdims=True))
    weights_BHKQ = jnp.exp(logits_BHKQ - max_BH1Q)
    out_BHDQ = jnp.einsum(
        "BHDK,BHKQ->BHDQ",
        v_BKHD.transpose(0, 2, 3, 1),
        weights_BHKQ.astype(v_BKHD.dtype),
        preferred_element_type=precision,
    )
    out_BHDQ = (out_BHDQ / weights_BHKQ.sum(2, keepdims=True)).astype(v_BKHD.dtype)
    return out_BHDQ.transpose(0, 3, 1, 2)


def _xla_attention_tpu_16bit(q_BQHD, k_BKHD, v_BKHD):
    """Attention that divides by the softmax's sum after the second product.

    So what is stored between the two products is 16-bit, half of the memory traffic
    (docs/tpu-plan.md).
    """
    precision = accum_dtype(q_BQHD.dtype)
    logits_BHQK = jnp.einsum("BQHD,BKHD->BHQK", q_BQHD, k_BKHD, preferred_element_type=precision)
    max_BHQ1 = jax.lax.stop_gradient(logits_BHQK.max(-1, keepdims=True))
    weights_BHQK = jnp.exp(logits_BHQK - max_BHQ1).astype(v_BKHD.dtype)
    sum_BQH1 = weights_BHQK.astype(precision).sum(-1).swapaxes(1, 2)[..., None]
    out_BQHD = jnp.einsum("BHQK,BKHD->BQHD", weights_BHQK, v_BKHD, preferred_element_type=precision)
    return (out_BQHD / sum_BQH1).astype(v_BKHD.dtype)


def pointwise_attention(q_BQHD, k_BKHD, v_BKHD):
    """Attention by elementwise products and sums, for sequences of a few frames.

    XLA on CPU runs many tiny matrix products 4 times as slowly, in the backward pass too. The
    work, and without fusion the memory, is B * Q * K * H * D.
    """
    precision = accum_dtype(q_BQHD.dtype)
    logits_BQKH = jnp.sum(q_BQHD[:, :, None] * k_BKHD[:, None], axis=-1, dtype=precision)
    weights_BQKH = jax.nn.softmax(logits_BQKH, axis=2).astype(v_BKHD.dtype)
    return jnp.sum(weights_BQKH[..., None] * v_BKHD[:, None], axis=2)


def chunked_attention(q_BQHD, k_BKHD, v_BKHD):
    """`xla_attention` of some queries at a time, recomputed in the backward pass.

    A chunk's logits take at most CHUNK_BYTES, or are those of LANES queries.
    """
    B, Q, H, D = q_BQHD.shape
    bytes_per_query = B * H * k_BKHD.shape[1] * jnp.dtype(accum_dtype(q_BQHD.dtype)).itemsize
    size = min(Q, max(LANES, CHUNK_BYTES // bytes_per_query // LANES * LANES))
    count = -(-Q // size)
    padded = jnp.pad(q_BQHD, ((0, 0), (0, count * size - Q), (0, 0), (0, 0)))
    chunks = padded.reshape(B, count, size, H, D).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda q: xla_attention(q, k_BKHD, v_BKHD)), chunks)
    return out.swapaxes(0, 1).reshape(B, count * size, H, D)[:, :Q]


def splash_attention(q_BQHD, k_BKHD, v_BKHD):
    """Splash attention, JAX's flash attention kernel for TPUs; elsewhere it is interpreted.

    Sequences are padded to multiples of LANES, and padded keys are masked.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, Q, H, D), K = q_BQHD.shape, k_BKHD.shape[1]
    pad_q, pad_k = -Q % LANES, -K % LANES
    q_BHQD, k_BHKD, v_BHKD = (
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, pad), (0, 0)))
        for x, pad in ((q_BQHD, pad_q), (k_BKHD, pad_k), (v_BKHD, pad_k))
    )
    block_q, block_kv = splash_block_size(Q + pad_q), splash_block_size(K + pad_k)
    block_kv_compute = 512 if block_kv % 512 == 0 else block_kv
    # The innermost axis is padded to whole lanes, so it should not be a narrow head.
    layout = splash.QKVLayout.SEQ_MINOR if D % LANES else splash.QKVLayout.HEAD_DIM_MINOR
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((Q + pad_q, K + pad_k))] * H),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=block_kv_compute,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_kv_dkv_compute=block_kv_compute,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        interpret=platform() != "tpu",
    )
    segment_ids = None
    if pad_k:  # queries attend to keys of their own segment: 0 for the sequence, 1 for padding
        query_segments = jnp.zeros(Q + pad_q, jnp.int32)
        key_segments = (jnp.arange(K + pad_k) >= K).astype(jnp.int32)
        segment_ids = splash.SegmentIds(query_segments, key_segments)
    run = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segment_ids))
    out_BHQD = keep_precision(run)(q_BHQD, k_BHKD, v_BHKD)[:, :, :Q]
    return out_BHQD.swapaxes(1, 2).astype(q_BQHD.dtype)


def keep_precision(function: Callable) -> Callable:
    """The function, with this moment's `jax.default_matmul_precision` wherever it is traced.

    The gradient of a product has the product's precision. But the kernels of a hand-written
    backward pass, and under `jax.checkpoint` those of its forward pass, are traced later, when the
    default may be another one.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined] # dynamic

    def forward(*args):
        with jax.default_matmul_precision(precision):
            return jax.vjp(function, *args)

    def backward(pullback, gradient):
        with jax.default_matmul_precision(precision):
            return pullback(gradient)

    kept = jax.custom_vjp(function)
    kept.defvjp(forward, backward)
    return kept


def splash_block_size(length: int) -> int:
    """The largest tile side that divides a padded length."""
    return next(size for size in SPLASH_BLOCK_SIZES if length % size == 0)


def cudnn_attention(q_BQHD, k_BKHD, v_BKHD):
    """Flash attention by cuDNN. Raises ValueError for an unsupported dtype or head width."""
    if reason := cudnn_unsupported_reason(q_BQHD.dtype, q_BQHD.shape[-1]):
        raise ValueError(f"attention implementation 'cudnn' {reason}; choose auto, xla or chunked")
    return jax.nn.dot_product_attention(q_BQHD, k_BKHD, v_BKHD, scale=1.0, implementation="cudnn")


def cudnn_unsupported_reason(dtype, head_dim: int) -> str:
    """Why cuDNN does not take this dtype or head width; empty if every supported GPU does."""
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
# The compiler cannot partition these by itself (a loop, and two custom calls).
PER_DEVICE_BACKENDS = ("chunked", "splash", "cudnn")


def shard_over_batch(backend: Callable, batch: int) -> Callable:
    """Runs a backend on each device's part of the batch, if a mesh is set.

    The batch is split over the longest prefix of the mesh's axes whose product divides it. A batch
    that no prefix divides is computed whole by every device.
    """
    axes = auto_mesh_axes()
    sizes = list(axes.values())
    if math.prod(sizes) <= 1:
        return backend
    prefix = max(n for n in range(len(sizes) + 1) if batch % math.prod(sizes[:n]) == 0)
    spec = P(tuple(axes)[:prefix] or None)
    shard = partial(
        jax.shard_map,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(spec,) * 3,
        out_specs=spec,
        # The kernels of splash and cuDNN do not declare over which axes their outputs vary.
        check_vma=backend is chunked_attention,
    )
    return shard(backend)


class Attention(nn.Module):
    """Multi-head attention under diffusers' parameter names (`to_q`, `to_k`, `to_v`, `to_out.0`).

    Attributes:
        qkv_bias: whether the projections of queries, keys and values have a bias.
        impl: see `attention`.
        out_init: initializer of the output projection's kernel.
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
        """Attends from x to the context.

        Args:
            x_BQC: [B, Q, C].
            context_BKC: [B, K, C_context]; None for self-attention.
            gather: maps the projected keys and values [B, K, H, D] to those that each row of the
                batch attends to. So each key is projected once, however many rows use it.

        Returns:
            [B, Q, out_features].
        """
        context_BKC = x_BQC if context_BKC is None else context_BKC
        inner = self.heads * self.head_dim

        def project(name, x):
            y = Dense(inner, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], self.heads, self.head_dim)

        q_BQHD = project("to_q", x_BQC)
        k_BKHD = gather(project("to_k", context_BKC))
        v_BKHD = gather(project("to_v", context_BKC))
        out_BQHD = attention(q_BQHD, k_BKHD, v_BKHD, self.impl)
        to_out = Dense(
            self.out_features, dtype=self.dtype, kernel_init=self.out_init, name="to_out.0"
        )
        return to_out(out_BQHD.reshape(*out_BQHD.shape[:-2], inner))
