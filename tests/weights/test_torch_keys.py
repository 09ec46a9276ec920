"""The name rule between Flax paths and PyTorch keys."""

import numpy as np

from ivid2vid_jax.weights import torch_keys


def test_name_rule_is_invertible():
    rng = np.random.default_rng(0)
    for shape in [(3, 5), (3, 3, 4, 6), (3, 1, 1, 4, 6)]:
        path, array = ("a.0", "b", "kernel"), rng.standard_normal(shape)
        torch_array = torch_keys.to_torch(path, array)
        assert torch_array.shape == torch_keys.torch_shape(path, shape)
        np.testing.assert_array_equal(torch_keys.from_torch(path, torch_array), array)
    assert (
        torch_keys.torch_key(("down_blocks.0", "resnets.1", "norm1", "scale"))
        == "down_blocks.0.resnets.1.norm1.weight"
    )
    assert (
        torch_keys.torch_key(("text_model", "embeddings", "token_embedding", "embedding"))
        == "text_model.embeddings.token_embedding.weight"
    )
