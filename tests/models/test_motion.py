"""Motion modules against diffusers' UNetMotionModel, and their properties."""

import dataclasses

import flax
import jax
import numpy as np
import pytest

import ivid2vid_jax
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.training import params as param_names
from ivid2vid_jax.training.init_state import target_unet
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import components, random_init
from ivid2vid_jax.weights.inflate import inflate_params, unet_initializer, unet_param_shapes
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder, save_folder
from tests.support import factory, tiny_run
from tests.support.references import torch

FLAT = UNetConfig.from_json(factory.UNET_TINY | factory.ONE_LEVEL)
TINY = dataclasses.replace(FLAT, temporal=("motion",))


def inputs(seed=0, B=2, T=5, side=8):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((B, T, side, side, 8), np.float32),
        np.float32([3, 700][:B]),
        rng.standard_normal((B, 7, 32)).astype(np.float32),
    )


def apply(config, params, x, t, context):
    return np.asarray(jax.jit(InflatedUNet3D(config).apply)({"params": params}, x, t, context))


@pytest.mark.parametrize("mid_block", [False, True], ids=["v1 and v3", "v2"])
def test_equals_diffusers_motion_model(tmp_path, mid_block):
    module = factory.motion_unet(use_motion_mid_block=mid_block, motion_max_seq_length=24)
    module.save_pretrained(tmp_path)
    config = UNetConfig.from_json(read_json(tmp_path / "config.json"))
    assert config.temporal == ("motion",) and config.motion_max_seq_length == 24
    assert config.use_motion_mid_block == mid_block
    params = components.load_component("unet", tmp_path, unet_param_shapes(config))
    x, t, context = inputs()
    with torch.no_grad():
        text = torch.from_numpy(context.repeat(x.shape[1], axis=0))
        clip = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        expected = module(clip, torch.from_numpy(t), text).sample.numpy()
    actual = apply(config, params, x, t, context)
    assert factory.relative_difference(actual, np.moveaxis(expected, 1, -1)) <= 1e-5


def test_norms_by_frame_differ_from_norms_over_the_clip():
    params = factory.random_params(unet_param_shapes(TINY))
    over_clip, by_frame = (
        apply(dataclasses.replace(TINY, motion_group_norm=pooled), params, *inputs())
        for pooled in ("clip", "frame")
    )
    assert factory.relative_difference(by_frame, over_clip) > 1e-3


def test_freshly_inflated_equals_2d(tmp_path):
    factory.unet(factory.UNET_TINY | factory.ONE_LEVEL).save_pretrained(tmp_path)
    params = components.load_component("unet", tmp_path, unet_param_shapes(FLAT))
    np.testing.assert_allclose(
        apply(TINY, inflate_params(params, FLAT, TINY, seed=0), *inputs()),
        apply(FLAT, params, *inputs()),
        atol=2e-6,
    )


def test_the_positional_encoding_equals_diffusers_and_is_never_trained():
    expected = {
        name: value.numpy()
        for name, value in factory.motion_unet().state_dict().items()
        if name.endswith(".pe")
    }
    config = UNetConfig.from_json(factory.UNET_TINY | dict(temporal=["motion"]))
    flat = flax.traverse_util.flatten_dict(unet_param_shapes(config))
    paths = [path for path in flat if path[-1] == "pe"]
    actual = random_init.init_params(unet_initializer(config), 0, paths)
    assert len(actual) == len(expected) == 6
    for path, table in actual.items():
        np.testing.assert_allclose(table, expected[".".join(path)], atol=2e-6)
    params = param_names.flatten({"unet": unet_param_shapes(config)})
    for pattern in ("unet", "temporal"):
        trainable = param_names.trainable(params, (pattern,))
        assert not [name for name in trainable if name.endswith("pe")]


def test_only_the_positional_encoding_knows_the_order_of_frames():
    """Without it, reversed frames give the reversed result."""
    params = factory.random_params(unet_param_shapes(TINY))
    x, t, context = inputs()
    without_encoding = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key == "pe" else leaf, params
    )
    for tree, is_equal in ((params, False), (without_encoding, True)):
        forward = apply(TINY, tree, x, t, context)
        backward = apply(TINY, tree, x[:, ::-1], t, context)[:, ::-1]
        assert np.allclose(forward, backward, atol=1e-4) == is_equal


def test_windows_longer_than_the_positional_encoding_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_frames 16 is more than the 8 positions"):
        dataclasses.replace(TINY, motion_max_seq_length=8)
    x, t, context = inputs(T=5)
    short = dataclasses.replace(TINY, motion_max_seq_length=4, num_frames=4)
    with pytest.raises(ValueError, match="5 frames are more than the 4 positions"):
        jax.eval_shape(InflatedUNet3D(short).init, jax.random.key(0), x, t, context)
    folder = open_pipeline_folder(
        factory.save_pipeline(tmp_path / "base", factory.tiny_parts(**factory.ONE_LEVEL))
    )
    params = load_params(folder)
    params["unet"] = inflate_params(params["unet"], folder.unet, short, 0)
    save_folder(tmp_path / "motion", dataclasses.replace(folder, unet=short), params)
    pipe, clip = ivid2vid_jax.load(tmp_path / "motion"), np.zeros((6, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="frames 5 must be at most 4"):
        pipe.edit(clip, "snow", frames=5)
    assert pipe.edit(clip, "snow", steps=1, size=16).shape == clip.shape  # in windows
    config = tiny_run.tiny(tmp_path, net__temporal=("motion",), loader__frames=33)
    with pytest.raises(
        UserError, match=r"--net\.temporal motion.*--loader\.frames 33.* 32 positions"
    ):
        target_unet(config, folder.unet, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(motion_group_norm="batch"), "motion_group_norm='batch'"),
        (
            dict(motion_num_attention_heads=5),
            "16 channels of level 0 cannot be split into motion_num_attention_heads 5",
        ),
    ],
)
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
