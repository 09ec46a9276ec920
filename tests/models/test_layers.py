"""Layers that are computed otherwise than they are written down, against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.models import attention, temporal
from ivid2vid_jax.models.layers import Conv, GroupNorm
from ivid2vid_jax.models.transformer import layer_norm


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def value_and_gradients(layer, params, x):
    """The layer's output, and the gradients of its weighted sum."""
    out, pull = jax.vjp(lambda params, x: layer.apply({"params": params}, x), params, x)
    return [
        np.asarray(leaf, np.float32)
        for leaf in jax.tree.leaves((out, pull(drawn(*out.shape, seed=9).astype(out.dtype))))
    ]


def test_time_is_convolved_on_tpu_as_elsewhere(monkeypatch):
    layer, x = temporal.TemporalConvLayer(groups=4), drawn(2, 5, 4, 3, 8)
    params = jax.tree.map(
        lambda p: drawn(*p.shape, seed=p.size), layer.init(jax.random.key(0), x)["params"]
    )
    wanted = value_and_gradients(layer, params, x)
    monkeypatch.setattr(temporal, "platform", lambda: "tpu")
    assert "conv_general_dilated" in str(
        jax.make_jaxpr(lambda x: layer.apply({"params": params}, x))(x)
    )
    for a, b in zip(value_and_gradients(layer, params, x), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("shape", [(3, 6, 5, 8), (2, 3, 6, 5, 8)], ids=["images", "clip"])
def test_a_convolution_of_one_pixel_is_one(shape):
    layer, x = Conv(12, (1, 1)), drawn(*shape)
    params = {"kernel": drawn(1, 1, 8, 12, seed=1), "bias": drawn(12, seed=2)}
    assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)["params"]) == jax.tree.map(
        jnp.shape, params
    )
    rows = jax.lax.conv_general_dilated(
        x.reshape(-1, *shape[-3:]),
        params["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(
        layer.apply({"params": params}, x),
        np.asarray(rows).reshape(*shape[:-1], 12) + np.asarray(params["bias"]),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "build",
    [lambda dtype: GroupNorm(4, dtype=dtype), lambda dtype: layer_norm(None, dtype)],
    ids=["groups", "layer"],
)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_moments_in_one_pass_are_as_good_as_their_result(build, mean):
    """16-bit results, which are 0.4% apart, of numbers whose mean is 30 times their spread: against float32 in two passes."""
    x = drawn(2, 16, 16, 32) + mean
    params = build(jnp.float32).init(jax.random.key(0), x)
    exact, found = (build(dtype).apply(params, x) for dtype in (jnp.float32, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found.astype(jnp.float32), exact, atol=0.005 * float(jnp.abs(exact).max())
    )


def test_numbers_that_hardly_differ_are_normalised_to_something():
    """Rounding must not make the one-pass variance negative."""
    x = 3000.1 + 1e-3 * drawn(8, 8, 8, 32)
    layer = GroupNorm(4, dtype=jnp.bfloat16)
    assert jnp.isfinite(layer.apply(layer.init(jax.random.key(0), x), x)).all()


@pytest.mark.parametrize("device", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.01)])
def test_attention_is_the_formula_on_every_device(device, dtype, tolerance, monkeypatch):
    """Small scores and large ones; in 16 bits as near as those 8 bits of mantissa allow."""
    monkeypatch.setattr(attention, "platform", lambda: device)
    for scale in (0.25, 20.0):
        q, k, v = (
            drawn(2, n, 3, 16, seed=seed).astype(dtype) for seed, n in enumerate((20, 77, 77))
        )
        scores = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(x, np.float64) for x in (scale * q, k)))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        exact = np.einsum(
            "bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), np.asarray(v, np.float64)
        )
        found = attention.xla_attention(scale * q, k, v)
        assert (
            found.dtype == dtype
            and np.abs(np.asarray(found, np.float64) - exact).max()
            < tolerance * np.abs(exact).max()
        )
