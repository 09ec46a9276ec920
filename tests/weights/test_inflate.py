"""2D -> 3D inflation of stored weights."""

import jax
import numpy as np
import pytest

from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights.inflate import inflate_params
from ivid2vid_jax.weights.pipeline_folder import (
    load_params,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)
from tests.support import factory


def test_inflation_rejects_another_net():
    source, deeper, narrower = (
        UNetConfig.from_json(factory.UNET_TINY | changes)
        for changes in ({}, dict(layers_per_block=2), dict(in_channels=4))
    )
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), param_shapes("unet", source)
    )
    with pytest.raises(
        ValueError, match=r"in more than temporal layers: down_blocks.0.attentions.1"
    ):
        inflate_params(params, source, deeper, 0)
    with pytest.raises(ValueError, match="cannot be narrowed to 4"):
        inflate_params(params, source, narrower, 0)


def test_inflated_folder_round_trip(tiny, tmp_path):
    folder = open_pipeline_folder(tiny)
    params = load_params(folder)
    target = UNetConfig.from_json(
        folder.unet.to_json() | dict(temporal=["conv", "attention"], num_frames=8)
    )
    params["unet"] = inflate_params(params["unet"], folder.unet, target, 0)
    folder.unet = target
    folder.sampling = dict(steps=7, text_scale=3.0)
    save_folder(tmp_path / "video", folder, params)
    index = read_json(tmp_path / "video" / "model_index.json")
    assert index["_class_name"] == "InstructVid2VidPipeline"
    saved = open_pipeline_folder(tmp_path / "video")
    assert saved.unet == target and saved.sampling == folder.sampling
    jax.tree.map(np.testing.assert_array_equal, load_params(saved)["unet"], params["unet"])
