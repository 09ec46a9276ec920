"""Fixtures of the objective's and the step's tests; compiled once for all of them."""

import pytest

from ivid2vid_jax.training.params import flatten
from ivid2vid_jax.weights.pipeline_folder import param_shapes
from tests.support.tiny_objective import make_tiny_objective


@pytest.fixture(scope="session")
def tiny_objective(tmp_path_factory):
    return make_tiny_objective(tmp_path_factory.mktemp("tiny_objective"))


@pytest.fixture(scope="session")
def shapes(tiny_objective):
    """Parameter name -> shape, of networks with every kind of layer."""
    folder = tiny_objective.folder
    return flatten(
        {
            name: param_shapes(name, getattr(folder, name))
            for name in ("unet", "vae", "text_encoder")
        }
    )
