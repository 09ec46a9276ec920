"""Every attention backend against the plain one, forward and backward; the choice of backend."""

import functools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.models import attention as module
from ivid2vid_jax.models.attention import attention, select_backend
from tests.support.devices import device_env

HEAD_DIMS = (
    40,
    pytest.param(64, marks=pytest.mark.slow),
    pytest.param(80, marks=pytest.mark.slow),
    160,
)
# (queries, keys); "ragged" lengths are padded by the backends.
LENGTHS = {"even": (256, 256), "doubled keys": (128, 256), "ragged": (200, 333)}
BACKENDS = ("pointwise", "chunked", "splash")


def random_inputs(Q, K, D, B=2, H=2, dtype=np.float32):
    """q, k, v, and the weights of the output's elements in the loss."""
    rng = np.random.default_rng(D + Q)
    return [jnp.asarray(2 * rng.standard_normal((B, n, H, D)), dtype) for n in (Q, K, K, Q)]


def forward_and_backward(impl, q, k, v, weight):
    """The output, and the gradients of its weighted sum with respect to q, k and v."""

    def loss(q, k, v):
        out = attention(q, k, v, impl)
        return jnp.sum((out * weight).astype(jnp.float32)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *grads)]


@functools.cache
def reference(lengths, head_dim):
    """The plain backend's output and gradients."""
    return forward_and_backward("xla", *random_inputs(*LENGTHS[lengths], head_dim))


def relative_error(actual, expected) -> float:
    """The largest error of any array, relative to the array's largest element."""
    pairs = zip(actual, expected, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 128 queries."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("impl", BACKENDS)
def test_backend_equals_the_reference_in_float32(impl, head_dim, lengths, small_chunks):
    actual = forward_and_backward(impl, *random_inputs(*LENGTHS[lengths], head_dim))
    assert relative_error(actual, reference(lengths, head_dim)) < 1e-5


@pytest.mark.parametrize("impl", BACKENDS)
def test_backend_is_as_accurate_as_the_reference_in_bfloat16(impl, small_chunks):
    """Compared with float32 arithmetic on the same bfloat16 inputs.

    One bfloat16 rounding is 0.4%, and gradients accumulate several.
    """
    inputs = random_inputs(200, 333, 40, dtype=jnp.bfloat16)
    exact = forward_and_backward("xla", *(x.astype(jnp.float32) for x in inputs))
    reference, actual = (
        relative_error(forward_and_backward(name, *inputs), exact) for name in ("xla", impl)
    )
    assert actual < 0.02 and actual < 2 * reference, (actual, reference)


def test_chunks_need_less_memory(small_chunks):
    """Forward and backward of 1,024 tokens: "xla" holds the logits twice, "chunked" an eighth."""
    inputs = [jax.ShapeDtypeStruct((2, 1024, 4, 16), jnp.float32)] * 3

    def temporary_bytes(impl):
        grad = jax.grad(lambda *qkv: jnp.sum(attention(*qkv, impl)), (0, 1, 2))
        return jax.jit(grad).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    logits = 2 * 4 * 1024 * 1024 * 4
    assert temporary_bytes("xla") > logits and temporary_bytes("chunked") < logits / 2


ON_FOUR_DEVICES = """
import jax
from jax.sharding import AxisType
from ivid2vid_jax.models.attention import attention
from tests.models.test_attention import forward_and_backward, random_inputs, relative_error

mesh = jax.make_mesh((2, 2), ("data", "frames"), axis_types=(AxisType.Auto,) * 2)
# Only one mesh axis divides a batch of 6, so a device has 3 rows. No axis divides a batch of 5, so
# each device computes all of it.
for batch, local_batch in ((6, 3), (5, 5)):
    inputs = random_inputs(128, 128, 16, B=batch)
    expected = forward_and_backward("xla", *inputs)
    with jax.set_mesh(mesh):
        for impl in ("chunked", "splash"):
            actual = forward_and_backward(impl, *inputs)
            assert relative_error(actual, expected) < 1e-5, (impl, batch)
            lowered = jax.jit(lambda *qkv: attention(*qkv, impl)).lower(*inputs[:3]).as_text()
            assert "manual_computation" in lowered, lowered
            assert f"tensor<{local_batch}x128x2x16xf32>" in lowered, lowered
"""


@pytest.mark.slow
def test_devices_compute_their_part_of_the_batch():
    process = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        env=device_env(4),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("device", "lengths", "head_dim", "dtype", "expected"),
    [
        ("cpu", (8, 8), 16, "float32", "pointwise"),
        ("cpu", (64, 77), 40, "float32", "xla"),
        ("cpu", (1024, 1024), 40, "float32", "chunked"),
        ("tpu", (16, 16), 40, "bfloat16", "pointwise"),
        ("tpu", (65536, 77), 40, "bfloat16", "xla"),
        ("tpu", (4096, 8192), 40, "bfloat16", "splash"),
        ("tpu", (4096, 4096), 512, "bfloat16", "chunked"),
        ("gpu", (4096, 4096), 40, "bfloat16", "cudnn"),
        ("gpu", (4096, 4096), 160, "bfloat16", "chunked"),
        ("gpu", (4096, 4096), 40, "float32", "chunked"),
        ("gpu", (16, 16), 40, "bfloat16", "xla"),
    ],
)
def test_auto_selects_a_backend(device, lengths, head_dim, dtype, expected, monkeypatch):
    q, k = (jax.ShapeDtypeStruct((2, n, 8, head_dim), dtype) for n in lengths)
    monkeypatch.setattr(module, "cuda_compute_capability", lambda: 9.0)
    assert select_backend(q, k, device) == expected
    # cuDNN has no flash attention for a T4.
    monkeypatch.setattr(module, "cuda_compute_capability", lambda: 7.5)
    assert select_backend(q, k, device) == ("chunked" if expected == "cudnn" else expected)


@pytest.mark.parametrize(
    ("reported", "capability"), [("8.0", 8.0), ("7.5", 7.5), ("12.1", 12.1), ("gfx942", 0.0)]
)
def test_the_compute_capability_of_rocm_is_no_number(reported, capability, monkeypatch):
    device = SimpleNamespace(compute_capability=reported)
    monkeypatch.setattr(module.jax, "local_devices", lambda: [device])
    assert module.cuda_compute_capability() == capability
    q = jax.ShapeDtypeStruct((2, 4096, 8, 40), "bfloat16")
    assert select_backend(q, q, "gpu") == ("cudnn" if capability >= 8 else "chunked")


@pytest.mark.parametrize(
    ("impl", "dtype", "head_dim", "message"),
    [
        ("flash", "float32", 16, "'flash' is unknown; choose one of auto, xla"),
        ("cudnn", "float32", 16, "not float32"),
        ("cudnn", "bfloat16", 160, "not 160"),
    ],
)
def test_unsupported_inputs_are_refused(impl, dtype, head_dim, message):
    with pytest.raises(ValueError, match=message):
        attention(*(jnp.zeros((1, 8, 1, head_dim), dtype),) * 3, impl)
