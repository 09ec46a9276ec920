r"""pytorch-fid with given weights, and random weights for it; nothing is downloaded.

pytorch-fid needs torchvision, which has no build for torch's CPU wheels; with the usual build
installed, transformers and diffusers can no longer be imported. So it is no test dependency: tests
that call it are skipped without it, and golden numbers stand in for it. To run these tests and to
renew the numbers:

    pip install --no-deps --target /tmp/fid pytorch-fid==0.3.0 torchvision==0.28.0
    PYTHONPATH=/tmp/fid python -m pytest -rP -m "slow or not slow" \
        tests/evaluation/test_inception.py
"""

import contextlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

SHAPES = Path(__file__).with_name("inception_shapes.json")  # of each convolution's kernel
NORM_RANGES = {
    "weight": (0.8, 1.2),
    "bias": (-0.1, 0.1),
    "running_mean": (-0.1, 0.1),
    "running_var": (0.5, 1.5),
}


def pytorch_fid():
    """The modules (pytorch_fid.inception, pytorch_fid.fid_score)."""
    # torchvision's operators are missing, so their fake versions cannot be registered
    with mock.patch.object(torch.library, "register_fake", lambda name: lambda function: function):
        inception = pytest.importorskip("pytorch_fid.inception")
        return inception, pytest.importorskip("pytorch_fid.fid_score")


def random_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the FID Inception network, which keep the scale of activations."""
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in json.loads(SHAPES.read_text()).items():
        weights[f"{name}.conv.weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        for part, (low, high) in NORM_RANGES.items():
            weights[f"{name}.bn.{part}"] = rng.uniform(low, high, shape[0])
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in weights.items()}


@contextlib.contextmanager
def with_weights(weights: dict):
    """Makes pytorch-fid load these weights, without those of its classifier."""
    inception, _ = pytorch_fid()
    load = torch.nn.Module.load_state_dict

    def load_partial(module, state):
        result = load(module, state, strict=False)
        assert not result.unexpected_keys
        assert all(
            key.startswith("fc.") or key.endswith("num_batches_tracked")
            for key in result.missing_keys
        )

    with (
        mock.patch.object(inception, "load_state_dict_from_url", lambda *args, **kwargs: weights),
        mock.patch.object(torch.nn.Module, "load_state_dict", load_partial),
    ):
        yield
