"""Times single layers of Stable Diffusion 1.5's U-Net on a GPU, in every form that we have.

    python -m tests.benchmarks.gpu_layers --output layers.json
    python -m tests.benchmarks.gpu_layers --size tiny         # on any machine

The shapes are those of one guided sampler step (3 branches of 16 frames, 512x512), in bfloat16.
Each row: seconds of a call, in JAX by implementation and in PyTorch, forward, and forward with
backward. It says which implementation `models/` should choose.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from ivid2vid_jax.models.attention import attention, cudnn_unsupported_reason
from ivid2vid_jax.models.layers import Conv, GroupNorm
from ivid2vid_jax.models.temporal import (
    temporal_conv_gpu,
    temporal_conv_matmul,
    temporal_conv_tpu,
)
from tests.benchmarks.turns import sync

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRAMES = 48
# name -> [B, Q, K, H, D]
ATTENTION = {
    "self 4096": (FRAMES, 4096, 4096, 8, 40),
    "self 1024": (FRAMES, 1024, 1024, 8, 80),
    "self 256": (FRAMES, 256, 256, 8, 160),
    "cross 4096": (FRAMES, 4096, 77, 8, 40),
    "cross 1024": (FRAMES, 1024, 77, 8, 80),
    "cross 256": (FRAMES, 256, 77, 8, 160),
    "temporal 4096": (3 * 4096, 16, 16, 8, 40),
    "temporal 1024": (3 * 1024, 16, 16, 8, 80),
}
# name -> [B, H, W, C] and output channels
CONVOLUTION = {
    "64x64 320": ((FRAMES, 64, 64, 320), 320),
    "32x32 640": ((FRAMES, 32, 32, 640), 640),
    "16x16 1280": ((FRAMES, 16, 16, 1280), 1280),
    "64x64 960": ((FRAMES, 64, 64, 960), 320),
}
NORM = {"64x64 320": (FRAMES, 64, 64, 320), "32x32 640": (FRAMES, 32, 32, 640)}
# name -> [B, T, H, W, C]
TEMPORAL = {"64x64 320": (3, 16, 64, 64, 320), "32x32 640": (3, 16, 32, 32, 640)}

Row = dict[str, Any]


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Random numbers."""
    return scale * np.random.default_rng(0).standard_normal(shape, np.float32)


def milliseconds(run: Callable, wait: Callable, calls: int) -> float:
    """Milliseconds of a call: the smallest mean of three rounds."""
    for _ in range(2):
        wait(run())
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        rounds.append((time.perf_counter() - start) / calls)
    return 1e3 * min(rounds)


def jax_times(function: Callable, arrays: list[np.ndarray], calls: int) -> Row | str:
    """Milliseconds of a JAX function, forward and with the gradients of all arguments."""
    args = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    cotangent = jnp.ones_like(jax.eval_shape(function, *args))

    def with_gradients(*args):
        out, pullback = jax.vjp(function, *args)
        return out, pullback(cotangent)

    try:
        times = {}
        for name, f in (("forward", function), ("both", with_gradients)):
            run = partial(jax.jit(f), *args)
            times[name] = milliseconds(run, jax.block_until_ready, calls)
        return times
    except Exception as error:  # an implementation may not take a shape
        return f"{type(error).__name__}: {str(error)[:200]}"


def torch_times(
    function: Callable, arrays: list[np.ndarray], calls: int, layouts=None, fuse: bool = False
) -> Row:
    """Milliseconds of a PyTorch function, forward and with gradients; fuse: by torch.compile."""
    args = [torch.from_numpy(x).to(DEVICE, torch.bfloat16) for x in arrays]
    if layouts:
        args = [x.contiguous(memory_format=m) for x, m in zip(args, layouts, strict=True)]
    compiled = torch.compile(function, dynamic=False) if fuse and DEVICE == "cuda" else function

    def forward():
        with torch.no_grad():
            return compiled(*args)

    leaves = [x.detach().requires_grad_() for x in args]

    def both():
        out = compiled(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    def wait(_):
        sync()

    return {
        "forward": milliseconds(forward, wait, calls),
        "both": milliseconds(both, wait, calls),
    }


def padded_cudnn(q, k, v):
    """cuDNN's attention with keys padded to an even number, which its backward pass demands.

    It takes heads of up to 256 on Hopper (`attention` takes 128, as on every GPU).
    """
    B, K = k.shape[:2]
    k, v = (jnp.pad(x, ((0, 0), (0, K % 2), (0, 0), (0, 0))) for x in (k, v))
    lengths = jnp.full(B, K, jnp.int32) if K % 2 else None
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def attention_row(shape: tuple[int, ...], calls: int) -> Row:
    """Attention: our backends, and PyTorch's scaled-dot-product attention."""
    B, Q, K, H, D = shape
    arrays = [normal(B, Q, H, D), normal(B, K, H, D), normal(B, K, H, D)]
    names = ["xla"]
    if Q * K * B * H > 2**30:
        names = ["chunked"]  # the full logits do not fit
    if DEVICE == "cuda" and not cudnn_unsupported_reason(jnp.bfloat16, D):
        names.append("cudnn")
    row: Row = {"flop": 4 * B * Q * K * H * D}
    for name in names:
        row[name] = jax_times(partial(attention, impl=name), arrays, calls)
    if DEVICE == "cuda":
        row["cudnn padded"] = jax_times(padded_cudnn, arrays, calls)

    def sdpa(q, k, v):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    row["torch"] = torch_times(sdpa, arrays, calls)
    return row


def convolution_row(shape: tuple, features: int, calls: int) -> Row:
    """A 3x3 convolution."""
    C = shape[-1]
    x, kernel = normal(*shape), normal(3, 3, C, features, scale=(9 * C) ** -0.5)
    layer = Conv(features, (3, 3), dtype=jnp.bfloat16)
    bias = np.zeros(features, np.float32)

    def ours(x, kernel):
        return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    arrays = [x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)]
    row = {"flop": 2 * 9 * C * features * int(np.prod(shape[:-1]))}
    row["xla"] = jax_times(ours, [x, kernel], calls)
    row["torch"] = torch_times(
        partial(F.conv2d, padding=1), arrays, calls, [torch.channels_last] * 2
    )
    return row


def norm_row(shape: tuple, calls: int) -> Row:
    """Group normalisation and SiLU."""
    x, C = normal(*shape), shape[-1]
    layer = GroupNorm(32, dtype=jnp.bfloat16)

    def ours(x, scale, bias):
        return jax.nn.silu(layer.apply({"params": {"scale": scale, "bias": bias}}, x))

    def theirs(x, scale, bias):
        return F.silu(F.group_norm(x, 32, scale, bias, 1e-5))

    affine = [np.ones(C, np.float32), np.zeros(C, np.float32)]
    row = {"bytes": 2 * 2 * x.size}
    row["xla"] = jax_times(ours, [x, *affine], calls)
    layouts = [torch.channels_last, torch.contiguous_format, torch.contiguous_format]
    row["torch"] = torch_times(
        theirs, [x.transpose(0, 3, 1, 2), *affine], calls, layouts, fuse=True
    )
    return row


def temporal_row(shape: tuple, calls: int) -> Row:
    """A temporal convolution over three frames."""
    T, C = shape[1], shape[-1]
    x, taps = normal(*shape), normal(3, C, C, scale=(3 * C) ** -0.5)
    row: Row = {"flop": 2 * 3 * C * x.size}

    def conv_3d(x, taps):
        kernel = taps[:, None, None]
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        padding = ((1, 1), (0, 0), (0, 0))
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1, 1), padding, dimension_numbers=numbers
        )

    def shifted(x, taps):
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return sum(x[:, i : i + T] @ taps[i] for i in range(3))

    forms = {
        "matmul": temporal_conv_matmul,
        "positions": temporal_conv_tpu,
        "conv 3d": conv_3d,
        "conv 2d": temporal_conv_gpu,
        "shifted": shifted,
    }
    for name, form in forms.items():
        row[name] = jax_times(form, [x, taps], calls)
    arrays = [x.transpose(0, 4, 1, 2, 3), taps.transpose(2, 1, 0)[..., None, None]]
    row["torch"] = torch_times(
        partial(F.conv3d, padding=(1, 0, 0)), arrays, calls, [torch.channels_last_3d] * 2
    )
    return row


def rows(tiny: bool, calls: int):
    """Yields (name, a function that measures it)."""

    def small(shape):  # the same rank, on any machine
        return tuple(min(n, 2) if i == 0 else min(n, 32) for i, n in enumerate(shape))

    fit = small if tiny else tuple
    for name, shape in ATTENTION.items():
        yield f"attention {name}", partial(attention_row, fit(shape), calls)
    for name, (shape, features) in CONVOLUTION.items():
        yield (
            f"convolution {name}",
            partial(convolution_row, fit(shape), min(features, 32) if tiny else features, calls),
        )
    for name, shape in NORM.items():
        yield f"norm {name}", partial(norm_row, fit(shape), calls)
    for name, shape in TEMPORAL.items():
        yield f"temporal {name}", partial(temporal_row, fit(shape), calls)


def main(argv: list[str] | None = None) -> None:
    """Prints one JSON line per layer and writes all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("sd15", "tiny"), default="sd15")
    parser.add_argument("--calls", type=int, default=10, help="calls per timed round")
    parser.add_argument("--output", type=Path, help="JSON file, written after every layer")
    args = parser.parse_args(argv)
    record: Row = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "layers": {}}
    for name, measure in rows(args.size == "tiny", args.calls):
        record["layers"][name] = row = measure()
        print(json.dumps({"layer": name} | row), flush=True)
        if args.output:
            args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
