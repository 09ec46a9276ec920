"""Random parameters have the constants and the distributions of Flax's initialisers."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.models import CLIPTextConfig, CLIPTextModel
from ivid2vid_jax.models.layers import ResnetBlock
from ivid2vid_jax.models.temporal import TemporalConvLayer, TemporalTransformer
from ivid2vid_jax.weights.random_init import init_params

CLIP = jnp.zeros((1, 2, 4, 4, 64))
TEXT = CLIPTextConfig(
    vocab_size=600,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=16,
)
MODULES = {
    "resnet": lambda key: ResnetBlock(64, 8).init(key, CLIP, jnp.zeros((1, 32)))["params"],
    "temporal conv": lambda key: TemporalConvLayer(8).init(key, CLIP)["params"],
    "temporal transformer": lambda key: TemporalTransformer(2, 32, 8).init(key, CLIP)["params"],
    "text": lambda key: CLIPTextModel(TEXT).init(key, jnp.zeros((1, 4), jnp.int32))["params"],
}


@pytest.mark.parametrize("name", MODULES)
def test_same_distribution_as_flax(name):
    init = MODULES[name]
    reference = flax.traverse_util.flatten_dict(init(jax.random.key(1)))
    params = init_params(init, 0)
    assert {path: leaf.shape for path, leaf in params.items()} == {
        path: leaf.shape for path, leaf in reference.items()
    }
    random_leaves = 0
    for path, leaf in params.items():
        expected = np.asarray(reference[path])
        if (expected == expected.flat[0]).all():
            np.testing.assert_array_equal(leaf, expected, err_msg=str(path))
            continue
        random_leaves += 1
        assert leaf.dtype == np.float32 and not np.array_equal(leaf, expected)
        tolerance = 5 / np.sqrt(leaf.size)  # about 5 standard errors of a standard deviation
        assert abs(leaf.std() / expected.std() - 1) < tolerance, path
        assert abs(leaf.mean()) < 5 * leaf.std() / np.sqrt(leaf.size), path
        if path[-1] == "kernel":
            # truncated at 2 standard deviations of the normal, whose truncation has std 0.8796
            assert np.abs(leaf).max() <= 2 / 0.8796 * leaf.std() * (1 + tolerance), path
    assert random_leaves > 2


def test_a_leaf_depends_on_seed_and_path_only():
    init = MODULES["resnet"]
    params, subset = init_params(init, 0), init_params(init, 0, [("conv1", "kernel")])
    np.testing.assert_array_equal(params["conv1", "kernel"], subset["conv1", "kernel"])
    assert not np.array_equal(params["conv1", "kernel"], params["conv2", "kernel"])
    assert not np.array_equal(params["conv1", "kernel"], init_params(init, 1)["conv1", "kernel"])
