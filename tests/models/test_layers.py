"""Layers whose implementation differs from their formula, against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.models import attention, temporal
from ivid2vid_jax.models.layers import Conv, GroupNorm
from ivid2vid_jax.models.transformer import layer_norm


def random_array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def value_and_gradients(layer, params, x):
    """The layer's output, and the gradients of its randomly weighted sum."""

    def compute(params, x):
        out, vjp = jax.vjp(lambda params, x: layer.apply({"params": params}, x), params, x)
        return out, vjp(random_array(*out.shape, seed=9).astype(out.dtype))

    leaves = jax.tree.leaves(jax.jit(compute)(params, x))
    return [np.asarray(leaf, np.float32) for leaf in leaves]


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_temporal_convolution_is_the_same_on_every_platform(device, monkeypatch):
    layer, x = temporal.TemporalConvLayer(groups=4), random_array(2, 5, 4, 3, 8)
    params = jax.tree.map(
        lambda p: random_array(*p.shape, seed=p.size), layer.init(jax.random.key(0), x)["params"]
    )
    expected = value_and_gradients(layer, params, x)
    monkeypatch.setattr(temporal, "platform", lambda: device)
    jaxpr = jax.make_jaxpr(lambda x: layer.apply({"params": params}, x))(x)
    assert "conv_general_dilated" in str(jaxpr)
    for a, b in zip(value_and_gradients(layer, params, x), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("shape", [(3, 6, 5, 8), (2, 3, 6, 5, 8)], ids=["images", "clip"])
def test_a_1x1_convolution_equals_a_convolution(shape):
    layer, x = Conv(12, (1, 1)), random_array(*shape)
    params = {"kernel": random_array(1, 1, 8, 12, seed=1), "bias": random_array(12, seed=2)}
    initial = layer.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, params)
    expected = jax.lax.conv_general_dilated(
        x.reshape(-1, *shape[-3:]),
        params["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected = np.asarray(expected).reshape(*shape[:-1], 12) + np.asarray(params["bias"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [lambda dtype: GroupNorm(4, dtype=dtype), lambda dtype: layer_norm(None, dtype)],
    ids=["groups", "layer"],
)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_one_pass_statistics_are_as_accurate_as_a_16bit_result(build, mean):
    """Against float32 in two passes, also for a mean of 30 standard deviations.

    Neighbouring bfloat16 numbers differ by 0.4%.
    """
    x = random_array(2, 16, 16, 32) + mean
    params = build(jnp.float32).init(jax.random.key(0), x)
    expected, actual = (build(dtype).apply(params, x) for dtype in (jnp.float32, jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    tolerance = 0.005 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=tolerance)


def test_norms_of_nearly_constant_inputs_are_finite():
    """Rounding must not make the one-pass variance negative."""
    x = 3000.1 + 1e-3 * random_array(8, 8, 8, 32)
    layer = GroupNorm(4, dtype=jnp.bfloat16)
    assert jnp.isfinite(layer.apply(layer.init(jax.random.key(0), x), x)).all()


@pytest.mark.parametrize("device", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.01)])
def test_xla_attention_equals_the_formula_on_every_platform(device, dtype, tolerance, monkeypatch):
    """For small and large logits. The tolerance in bfloat16 is that of its 8 bits of mantissa."""
    monkeypatch.setattr(attention, "platform", lambda: device)
    for scale in (0.25, 20.0):
        q, k, v = (
            random_array(2, n, 3, 16, seed=seed).astype(dtype)
            for seed, n in enumerate((20, 77, 77))
        )
        q64, k64, v64 = (np.asarray(x, np.float64) for x in (scale * q, k, v))
        logits = np.einsum("bqhd,bkhd->bhqk", q64, k64)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected = np.einsum("bhqk,bkhd->bqhd", weights, v64)
        actual = attention.xla_attention(scale * q, k, v)
        assert actual.dtype == dtype
        error = np.abs(np.asarray(actual, np.float64) - expected).max()
        assert error < tolerance * np.abs(expected).max()
