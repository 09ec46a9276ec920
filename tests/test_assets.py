"""The embedded files: sample clips by name, and packing of runs into float16 folders."""

from pathlib import Path

import jax
import numpy as np
import pytest

from ivid2vid_jax import assets
from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import Edit
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.experiments import pack_assets
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder, save_folder
from tests.video.test_video import psnr


@pytest.mark.parametrize("name", pack_assets.CLIPS)
def test_sample_clips_match_their_scenes(name):
    scene = pack_assets.CLIPS[name]
    expected = shapes.render(scene, 64, 8)
    clip = np.stack([frame.pixels for frame in open_clip(assets.clips()[name]).frames()])
    assert clip.shape == expected.shape and psnr(clip, expected) > 30
    assert shapes.check(expected, clip, shapes.Spec(scene, Edit("identity", 0))).passed


def test_clips_are_found_by_name_and_paths_are_unchanged(tmp_path):
    first, *_ = pack_assets.CLIPS
    assert assets.clip(None) == assets.clips()[first] == assets.clip(Path(first))
    assert assets.clip(tmp_path / "none.mp4") == tmp_path / "none.mp4"


def test_model_names_are_folders_of_the_package():
    assert hub.resolve_model(None) == assets.folder() / "shapes-edit"
    assert hub.resolve_model("shapes-clip") == assets.folder() / "shapes-clip"
    with pytest.raises(UserError, match=r"shapes-bass: .*shapes-base"):
        hub.resolve_model("shapes-bass")


def test_packing_stores_float16_weights_and_sampling_defaults(tiny, tmp_path):
    pack_assets.run(
        pack_assets.PackArgs(edit=tiny, text_scale=2.5, steps=20, output=tmp_path, clips=False)
    )
    packed, source = open_pipeline_folder(tmp_path / "shapes-edit"), open_pipeline_folder(tiny)
    assert packed.sampling == source.sampling | {"text_scale": 2.5, "steps": 20}
    assert (packed.unet, packed.vae, packed.text_encoder) == (
        source.unet,
        source.vae,
        source.text_encoder,
    )
    kernel, expected = (
        np.asarray(load_params(folder)["unet"]["conv_in"]["kernel"]) for folder in (packed, source)
    )
    assert kernel.dtype == np.float16
    np.testing.assert_array_equal(kernel, expected.astype(np.float16))
    assert not (tmp_path / "shapes-base").exists()
    with pytest.raises(UserError, match="nothing to pack"):
        pack_assets.run(pack_assets.PackArgs(clips=False))


@pytest.mark.parametrize(("part", "accepted"), [("decoder", True), ("encoder", False)])
def test_another_autoencoder_must_have_the_same_encoder(tiny, tmp_path, part, accepted):
    folder = open_pipeline_folder(tiny)
    params = jax.tree.map(np.asarray, load_params(folder))
    layer = params["vae"][part]["conv_in"]
    layer["bias"] = layer["bias"] + 1
    save_folder(tmp_path / "run", folder, params)
    args = pack_assets.PackArgs(
        edit=tiny, vae=tmp_path / "run", output=tmp_path / "out", clips=False
    )
    if not accepted:
        with pytest.raises(UserError, match=r"--vae .*encoder"):
            pack_assets.run(args)
        return
    pack_assets.run(args)
    packed = load_params(open_pipeline_folder(tmp_path / "out" / "shapes-edit"))
    bias = np.asarray(packed["vae"]["decoder"]["conv_in"]["bias"])
    np.testing.assert_array_equal(bias, layer["bias"].astype(np.float16))
