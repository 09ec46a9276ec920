"""Every module can be imported, on every supported Python and JAX."""

import importlib
import pkgutil

import pytest

import ivid2vid_jax

MODULES = [
    module.name
    for module in pkgutil.walk_packages(ivid2vid_jax.__path__, "ivid2vid_jax.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_module_can_be_imported(name):
    importlib.import_module(name)
