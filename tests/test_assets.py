"""What is embedded: sample clips by name, and the packing of runs into float16 folders."""

import jax
import numpy as np
import pytest

from ivid2vid_jax import assets
from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import Edit
from ivid2vid_jax.experiments import pack_assets
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder, save_folder
from tests.video.test_video import psnr


@pytest.mark.parametrize("name", pack_assets.CLIPS)
def test_sample_clips_are_what_their_scenes_draw(name):
    drawn = shapes.render(pack_assets.CLIPS[name], 64, 8)
    shown = np.stack([frame.pixels for frame in open_clip(assets.clips()[name]).frames()])
    assert shown.shape == drawn.shape and psnr(shown, drawn) > 30
    spec = shapes.Spec(pack_assets.CLIPS[name], Edit("identity", 0))
    assert shapes.check(drawn, shown, spec).passed


def test_clips_by_name_and_paths_as_they_are(tmp_path):
    first, *_ = pack_assets.CLIPS
    assert assets.clip(None) == assets.clips()[first] == assets.clip(tmp_path.__class__(first))
    assert assets.clip(tmp_path / "none.mp4") == tmp_path / "none.mp4"


def test_names_are_folders_of_the_package():
    assert (
        hub.resolve_model(None) == assets.folder() / "shapes-edit"
        and hub.resolve_model("shapes-clip") == assets.folder() / "shapes-clip"
    )
    with pytest.raises(
        UserError, match="shapes-bass: no such model folder, nor one of the embedded shapes-base"
    ):
        hub.resolve_model("shapes-bass")


def test_packing_halves_the_weights_and_proposes_scales(tiny, tmp_path):
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
    ours, theirs = load_params(packed), load_params(source)
    kernel = np.asarray(ours["unet"]["conv_in"]["kernel"])
    assert kernel.dtype == np.float16 and np.array_equal(
        kernel, np.asarray(theirs["unet"]["conv_in"]["kernel"]).astype(np.float16)
    )
    assert not (tmp_path / "shapes-base").exists()
    with pytest.raises(UserError, match="nothing to pack"):
        pack_assets.run(pack_assets.PackArgs(clips=False))


@pytest.mark.parametrize(("part", "fits"), [("decoder", True), ("encoder", False)])
def test_an_autoencoder_is_packed_whose_encoder_is_the_same(tiny, tmp_path, part, fits):
    folder = open_pipeline_folder(tiny)
    params = jax.tree.map(np.asarray, load_params(folder))
    params["vae"][part]["conv_in"]["bias"] = params["vae"][part]["conv_in"]["bias"] + 1
    save_folder(tmp_path / "run", folder, params)
    args = pack_assets.PackArgs(
        edit=tiny, vae=tmp_path / "run", output=tmp_path / "out", clips=False
    )
    if not fits:
        with pytest.raises(UserError, match="its encoder is not that"):
            pack_assets.run(args)
        return
    pack_assets.run(args)
    packed = np.asarray(
        load_params(open_pipeline_folder(tmp_path / "out" / "shapes-edit"))["vae"]["decoder"][
            "conv_in"
        ]["bias"]
    )
    np.testing.assert_array_equal(
        packed, params["vae"]["decoder"]["conv_in"]["bias"].astype(np.float16)
    )
