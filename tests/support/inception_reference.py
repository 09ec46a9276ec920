"""pytorch-fid with weights of our choice, and such weights: nothing is downloaded.

pytorch-fid needs torchvision, of which there is no build for torch's CPU wheels: with the usual one installed, transformers and diffusers cannot be imported any more.
So it is no test dependency: tests that call it are skipped without it, golden numbers that it gave stand in for it, and to run the tests and renew the numbers:

    pip install --no-deps --target /tmp/fid pytorch-fid==0.3.0 torchvision==0.28.0
    PYTHONPATH=/tmp/fid python -m pytest -rP -m "slow or not slow" tests/evaluation/test_inception.py
"""

import contextlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

SHAPES = Path(__file__).with_name("inception_shapes.json")  # of each convolution's kernel


def pytorch_fid():
    """The modules (pytorch_fid.inception, pytorch_fid.fid_score)."""
    with mock.patch.object(
        torch.library, "register_fake", lambda name: lambda function: function
    ):  # torchvision's operators are not there
        return pytest.importorskip("pytorch_fid.inception"), pytest.importorskip(
            "pytorch_fid.fid_score"
        )


def random_weights(seed: int = 0) -> dict:
    """Of the FID Inception's names and shapes; activations keep their size through the depth, norms have no special values."""
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in json.loads(SHAPES.read_text()).items():
        weights[f"{name}.conv.weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        for part, low, high in (
            ("weight", 0.8, 1.2),
            ("bias", -0.1, 0.1),
            ("running_mean", -0.1, 0.1),
            ("running_var", 0.5, 1.5),
        ):
            weights[f"{name}.bn.{part}"] = rng.uniform(low, high, shape[0])
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in weights.items()}


@contextlib.contextmanager
def with_weights(weights: dict):
    """pytorch-fid takes these; its classifier, which no feature needs, keeps its own."""
    inception, _ = pytorch_fid()
    load = torch.nn.Module.load_state_dict

    def lenient(module, state):
        missing = load(module, state, strict=False)
        assert not missing.unexpected_keys and all(
            key.startswith("fc.") or key.endswith("num_batches_tracked")
            for key in missing.missing_keys
        )

    with (
        mock.patch.object(inception, "load_state_dict_from_url", lambda *args, **kwargs: weights),
        mock.patch.object(torch.nn.Module, "load_state_dict", lenient),
    ):
        yield
