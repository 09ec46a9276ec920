"""A network in float32 multiplies in float32 on every platform, forward and backward."""

from collections import Counter

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from jax.lax import Precision

from ivid2vid_jax.models import AutoencoderKL, CLIPModel, CLIPTextModel, InflatedUNet3D
from ivid2vid_jax.models import attention as attention_module
from ivid2vid_jax.models import layers as layers_module
from ivid2vid_jax.models.attention import attention
from tests.support.tiny_run import ONE_LEVEL

EXACT, DEFAULT = (Precision.HIGHEST, Precision.HIGHEST), None


def networks(dtype):
    """Name -> (module, its inputs, its method)."""
    net, shape = ONE_LEVEL, jax.ShapeDtypeStruct
    unet = InflatedUNet3D(net.unet, dtype=dtype)
    pixels, tokens = shape((1, 16, 16, 3), jnp.float32), shape((1, 16), jnp.int32)
    latents = shape((1, 2, 8, 8, net.unet.in_channels), jnp.float32)
    text = shape((1, 16, net.unet.cross_attention_dim), jnp.float32)
    image = shape((1, *(net.clip.vision.image_size,) * 2, 3), jnp.float32)
    vae = AutoencoderKL(net.vae, dtype)
    return {
        "unet": (unet, (latents, shape((1,), jnp.int32), text), unet.__call__),
        "encoder": (vae, (pixels,), lambda vae, x: vae.encode(x).mean),
        "decoder": (vae, (shape((1, 8, 8, 4), jnp.float32),), vae.decode),
        "text encoder": (CLIPTextModel(net.text_encoder, dtype), (tokens,), None),
        "clip": (
            CLIPModel(net.clip, dtype),
            (image, tokens),
            lambda m, *x: sum(map(jnp.sum, m(*x))),
        ),
    }


def gradient_jaxpr(module, inputs, method):
    """The jaxpr of the gradient with respect to the parameters."""

    def loss(variables, inputs):
        return jnp.sum(module.apply(variables, *inputs, method=method))

    variables = jax.eval_shape(
        lambda *x: module.init(jax.random.key(0), *x, method=method), *inputs
    )
    return jax.make_jaxpr(jax.grad(loss))(variables, inputs).jaxpr


def precisions(jaxpr) -> Counter:
    """(operation, precision) -> number of matrix products and convolutions, kernels included."""
    found: Counter = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            found[name, equation.params["precision"]] += 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += precisions(inner)
    return found


@pytest.fixture
def accelerator(monkeypatch):
    """Traces as for a TPU."""
    for module in (layers_module, attention_module):
        monkeypatch.setattr(module, "platform", lambda: "tpu")


@pytest.mark.parametrize("name", networks(jnp.float32))
def test_products_of_a_float32_network_are_exact(accelerator, name):
    found = precisions(gradient_jaxpr(*networks(jnp.float32)[name]))
    assert found and {precision for _, precision in found} == {EXACT}


@pytest.mark.parametrize("name", networks(jnp.float32))
def test_those_of_a_bfloat16_network_are_as_before(accelerator, name):
    found = precisions(gradient_jaxpr(*networks(jnp.bfloat16)[name]))
    assert found and {precision for _, precision in found} == {DEFAULT}


@pytest.mark.parametrize("remat", [lambda function: function, jax.checkpoint])
@pytest.mark.parametrize(("impl", "products"), [("xla", 6), ("chunked", 6), ("splash", 2 + 5 + 3)])
def test_every_attention_kernel_is_exact(accelerator, impl, products, remat):
    """At least `products`: of the forward and the backward pass."""

    def attend(q, k, v):
        with jax.default_matmul_precision("highest"):  # as `exact_float32` does
            return attention(q, k, v, impl)

    q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.float32)
    gradient = jax.grad(lambda *qkv: remat(attend)(*qkv).sum(), (0, 1, 2))
    found = precisions(jax.make_jaxpr(gradient)(q, q, q).jaxpr)
    assert found[("dot_general", EXACT)] >= products and len(found) == 1
