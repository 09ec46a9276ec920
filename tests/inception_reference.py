"""pytorch-fid with weights of our choice: nothing is downloaded, and torchvision is imported where its compiled operators do not fit torch's CPU build."""

import contextlib
from unittest import mock

import torch

def pytorch_fid():
    """The modules (pytorch_fid.inception, pytorch_fid.fid_score)."""
    with mock.patch.object(torch.library, "register_fake", lambda name: lambda function: function):
        from pytorch_fid import fid_score, inception

    return inception, fid_score


def random_weights(seed: int = 0) -> dict:
    """Of the FID Inception's names and shapes, norms and biases of no special value; its activations keep their size through the depth."""
    inception, _ = pytorch_fid()
    shapes = {}
    with mock.patch.object(inception, "load_state_dict_from_url", lambda *args, **kwargs: {}), mock.patch.object(
        torch.nn.Module, "load_state_dict", lambda module, weights, *args, **kwargs: shapes.update({k: v.shape for k, v in module.state_dict().items()})
    ):
        inception.fid_inception_v3()
    rng, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros((), dtype=torch.long)
        elif name.endswith("running_var"):
            weights[name] = 0.5 + torch.rand(shape, generator=rng)
        elif name.endswith("bn.weight"):
            weights[name] = 0.8 + 0.4 * torch.rand(shape, generator=rng)
        elif len(shape) == 4:
            weights[name] = torch.randn(shape, generator=rng) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        else:
            weights[name] = 0.1 * torch.randn(shape, generator=rng)
    return weights


@contextlib.contextmanager
def with_weights(weights: dict):
    """pytorch-fid takes these."""
    inception, _ = pytorch_fid()
    with mock.patch.object(inception, "load_state_dict_from_url", lambda *args, **kwargs: weights):
        yield
