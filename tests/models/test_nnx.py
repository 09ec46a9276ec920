"""The U-Net as an NNX module, taken as docs/reference.md says."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ivid2vid_jax.models import InflatedUNet3D
from tests.support import factory
from tests.support.tiny_run import ONE_LEVEL


def test_output_and_gradient_equal_the_linen_modules():
    config, rng = ONE_LEVEL.unet, np.random.default_rng(0)
    unet = InflatedUNet3D(config)
    x = rng.standard_normal((1, 2, 4, 4, config.in_channels), np.float32)
    context = rng.standard_normal((1, 3, config.cross_attention_dim), np.float32)
    inputs = x, jnp.array([500.0]), context
    params = factory.random_params(jax.eval_shape(unet.init, jax.random.key(0), *inputs)["params"])

    model = nnx.bridge.ToNNX(unet)
    for name, tree in params.items():
        setattr(model, name, nnx.data(jax.tree.map(nnx.Param, tree)))

    def loss_and_output(output):
        return jnp.mean(output**2), output

    linen = jax.value_and_grad(
        lambda params: loss_and_output(unet.apply({"params": params}, *inputs)), has_aux=True
    )
    wrapped = nnx.value_and_grad(lambda model: loss_and_output(model(*inputs)), has_aux=True)
    expected, expected_gradient = jax.jit(linen)(params)
    actual, gradient = nnx.jit(wrapped)(model)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(gradient), expected_gradient)
