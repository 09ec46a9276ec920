"""The text encoder against transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ivid2vid_jax.models import CLIPTextConfig, CLIPTextModel
from ivid2vid_jax.weights import components, files
from ivid2vid_jax.weights.folder import abstract
from tests import factory

TINY_H = factory.TEXT_TINY | dict(hidden_act="gelu", num_hidden_layers=3)


def check_parity(module, folder, length, tolerance):
    module.save_pretrained(folder)
    config = CLIPTextConfig.from_json(files.read_json(folder / "config.json"))
    params = components.load("text_encoder", folder, abstract("text_encoder", config))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
    with torch.no_grad():
        reference = module(torch.from_numpy(ids)).last_hidden_state.numpy()
    ours = jax.jit(CLIPTextModel(config).apply)({"params": params}, jnp.asarray(ids, jnp.int32))
    assert factory.relative(ours, reference) <= tolerance


@pytest.mark.parametrize("config", [factory.TEXT_TINY, TINY_H], ids=["quick_gelu", "gelu"])
@pytest.mark.parametrize("length", [77, 9])
def test_equals_transformers(tmp_path, config, length):
    check_parity(factory.text_encoder(config), tmp_path, length, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [factory.TEXT_SD15, factory.TEXT_SD21], ids=["sd15", "sd21"])
def test_equals_transformers_at_real_size(tmp_path, config):
    check_parity(factory.text_encoder(config), tmp_path, 77, 1e-4)


def test_too_long_is_an_error():
    with pytest.raises(ValueError, match="78 tokens exceed the text encoder's 77"):
        CLIPTextModel(CLIPTextConfig(**factory.TEXT_TINY)).init(jax.random.key(0), jnp.zeros((1, 78), jnp.int32))


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        CLIPTextConfig.from_json(dict(hidden_act="relu"))
