"""Every attention backend equals the reference, forward and backward; and who is chosen when."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.models import attention as module
from ivid2vid_jax.models.attention import attention, select_backend
from tests.support.devices import environment

HEAD_DIMS = (40, 64, 80, 160)
LENGTHS = {"even": (256, 256), "doubled keys": (128, 256), "ragged": (200, 333)}
BACKENDS = ("pointwise", "chunked", "splash")


def drawn(Q, K, D, B=2, H=2, dtype=np.float32):
    rng = np.random.default_rng(D + Q)
    return [jnp.asarray(2 * rng.standard_normal((B, n, H, D)), dtype) for n in (Q, K, K, Q)]


def forward_and_backward(impl, q, k, v, weight):
    """The output, and the gradients of its weighted sum with respect to q, k and v."""

    def loss(q, k, v):
        out = attention(q, k, v, impl)
        return jnp.sum((out * weight).astype(jnp.float32)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *grads)]


def deviation(found, wanted) -> float:
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, wanted, strict=True)
    )


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 128 queries."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("impl", BACKENDS)
def test_backend_equals_the_reference_in_float32(impl, head_dim, lengths, small_chunks):
    inputs = drawn(*LENGTHS[lengths], head_dim)
    assert (
        deviation(forward_and_backward(impl, *inputs), forward_and_backward("xla", *inputs)) < 1e-5
    )


@pytest.mark.parametrize("impl", BACKENDS)
def test_backend_is_as_near_to_the_truth_as_the_reference_in_bfloat16(impl, small_chunks):
    """The truth is float32 arithmetic on the same bfloat16 inputs; 8 bits are 0.4% a rounding, the gradients are chains of some."""
    inputs = drawn(200, 333, 40, dtype=jnp.bfloat16)
    truth = forward_and_backward("xla", *(x.astype(jnp.float32) for x in inputs))
    reference, found = (
        deviation(forward_and_backward(name, *inputs), truth) for name in ("xla", impl)
    )
    assert found < 0.02 and found < 2 * reference, (found, reference)


def test_chunks_hold_less_memory(small_chunks):
    """Forward and backward of 1,024 tokens: the reference holds the scores twice over, the chunks an eighth of them."""
    inputs = [jax.ShapeDtypeStruct((2, 1024, 4, 16), jnp.float32)] * 3

    def temporary(impl):
        grad = jax.grad(lambda *qkv: jnp.sum(attention(*qkv, impl)), (0, 1, 2))
        return jax.jit(grad).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    scores = 2 * 4 * 1024 * 1024 * 4
    assert temporary("xla") > scores and temporary("chunked") < scores / 2


ON_FOUR = """
import jax
from jax.sharding import AxisType
from ivid2vid_jax.models.attention import attention
from tests.models.test_attention import deviation, drawn, forward_and_backward

inputs = drawn(128, 128, 16, B=6)
wanted = forward_and_backward("xla", *inputs)
mesh = jax.make_mesh((2, 2), ("data", "frames"), axis_types=(AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    for impl in ("chunked", "splash"):
        found = forward_and_backward(impl, *inputs)
        lowered = jax.jit(lambda *qkv: attention(*qkv, impl)).lower(*inputs[:3]).as_text()
        assert deviation(found, wanted) < 1e-5, impl
        assert "manual_computation" in lowered and "tensor<3x128x2x16xf32>" in lowered, lowered
        odd = drawn(128, 128, 16, B=5)  # no axis divides it: every device does all of it, in its own program as a kernel must be
        assert deviation(forward_and_backward(impl, *odd), forward_and_backward("xla", *odd)) < 1e-5, impl
        lowered = jax.jit(lambda *qkv: attention(*qkv, impl)).lower(*odd[:3]).as_text()
        assert "manual_computation" in lowered and "tensor<5x128x2x16xf32>" in lowered, lowered
"""


@pytest.mark.slow
def test_devices_work_on_their_own_share():
    """Four devices; a batch of 6 is split by the axis that divides it, 3 to a device."""
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR],
        env=environment(4),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "lengths", "head_dim", "dtype", "chosen"),
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
def test_the_backend_that_fits(device, lengths, head_dim, dtype, chosen, monkeypatch):
    q, k = (jax.ShapeDtypeStruct((2, n, 8, head_dim), dtype) for n in lengths)
    monkeypatch.setattr(module, "cuda_compute_capability", lambda: 9.0)
    assert select_backend(q, k, device) == chosen
    monkeypatch.setattr(module, "cuda_compute_capability", lambda: 7.5)
    assert select_backend(q, k, device) == (
        "chunked" if chosen == "cudnn" else chosen
    )  # a T4 has no flash attention in cuDNN


@pytest.mark.parametrize(
    ("impl", "dtype", "head_dim", "message"),
    [
        ("flash", "float32", 16, "'flash' is unknown; choose one of auto, xla"),
        ("cudnn", "float32", 16, "not float32"),
        ("cudnn", "bfloat16", 160, "not 160"),
    ],
)
def test_what_a_backend_does_not_take_is_refused_by_name(impl, dtype, head_dim, message):
    with pytest.raises(ValueError, match=message):
        attention(*(jnp.zeros((1, 8, 1, head_dim), dtype),) * 3, impl)
