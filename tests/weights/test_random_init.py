"""Fresh parameters: flax's own initial values, to the constant and to the distribution, without XLA."""

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
def test_as_flax_initialises(name):
    init = MODULES[name]
    theirs, ours = flax.traverse_util.flatten_dict(init(jax.random.key(1))), init_params(init, 0)
    assert {path: leaf.shape for path, leaf in theirs.items()} == {
        path: leaf.shape for path, leaf in ours.items()
    }
    drawn = 0
    for path, leaf in ours.items():
        reference = np.asarray(theirs[path])
        if (reference == reference.flat[0]).all():
            np.testing.assert_array_equal(leaf, reference, err_msg=str(path))
            continue
        drawn += 1
        assert leaf.dtype == np.float32 and not np.array_equal(leaf, reference)
        share = 5 / np.sqrt(leaf.size)  # five standard errors of a standard deviation, about
        assert abs(leaf.std() / reference.std() - 1) < share, path
        assert abs(leaf.mean()) < 5 * leaf.std() / np.sqrt(leaf.size), path
        if path[-1] == "kernel":  # cut off at two standard deviations of the normal before the cut
            assert np.abs(leaf).max() <= 2 / 0.8796 * leaf.std() * (1 + share), path
    assert drawn > 2


def test_a_leaf_hangs_on_seed_and_name_alone():
    init = MODULES["resnet"]
    every, some = init_params(init, 0), init_params(init, 0, [("conv1", "kernel")])
    np.testing.assert_array_equal(every["conv1", "kernel"], some["conv1", "kernel"])
    assert not np.array_equal(every["conv1", "kernel"], every["conv2", "kernel"])
    assert not np.array_equal(every["conv1", "kernel"], init_params(init, 1)["conv1", "kernel"])
