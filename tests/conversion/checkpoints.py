"""Checkpoints in other layouts and comparisons with them, for the tests of the importer."""

import flax
import numpy as np

from ivid2vid_jax.conversion import foreign_formats, importer
from ivid2vid_jax.weights import torch_keys
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support import factory, foreign
from tests.support.references import diffusers, torch

# Sizes of Stable Diffusion that shapes do not tell.
SD1 = dict(attention_head_dim=8, norm_num_groups=32, cross_attention_dim=64)
SD2 = SD1 | dict(
    block_out_channels=(64, 128), attention_head_dim=(1, 2), use_linear_projection=True
)
TEXT = factory.TEXT_TINY | dict(hidden_size=64, num_attention_heads=1, num_hidden_layers=2)
VAE = dict(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=32)


def state_dict(module):
    return {
        key: value.clone()
        for key, value in module.state_dict().items()
        if not key.endswith("position_ids")
    }


def contiguous(state):
    return {key: value.contiguous() for key, value in state.items()}


def assert_equal_states(actual, expected):
    """Two state dicts agree bit for bit; shapes may differ by axes of size 1."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key].reshape(value.shape), value), key


def assert_equal_params(params, expected):
    """A Flax tree holds a PyTorch state dict, every key, bit for bit."""
    leaves = {
        torch_keys.torch_key(path): (path, leaf)
        for path, leaf in flax.traverse_util.flatten_dict(params).items()
    }
    assert leaves.keys() == expected.keys()
    for key, (path, leaf) in leaves.items():
        actual = torch_keys.to_torch(path, np.asarray(leaf))
        np.testing.assert_array_equal(actual, expected[key].numpy(), err_msg=key)


def motion_adapter(**changes):
    torch.manual_seed(7)
    sizes = dict(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        use_motion_mid_block=False,
    )
    return factory.randomise(diffusers.MotionAdapter(**sizes | changes), 7)


def single_file(unet, vae, text, open_clip=False):
    """The tensors of a Stable Diffusion file in latent diffusion's layout."""
    tensors = foreign.ldm_unet(state_dict(unet), layers=1)
    tensors |= foreign.ldm_vae(state_dict(vae), levels=2)
    if open_clip:
        tensors |= foreign.openclip(state_dict(text))
    else:
        tensors |= foreign.with_prefix(state_dict(text), "cond_stage_model.transformer.")
    return tensors | {"betas": torch.zeros(1000), "sqrt_alphas_cumprod": torch.ones(1000)}


def import_to(source, output, base=None, **options):
    """Imports a checkpoint; returns the report, the new folder and its parameters."""
    report = importer.import_checkpoint(
        foreign_formats.open_checkpoint(source), base, output, importer.ImportOptions(**options)
    )
    folder = open_pipeline_folder(output)
    return report, folder, load_params(folder)
