"""Runs that start from a model: what is trained, kept and inflated, and how a RUN is used."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax import edit
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.clip_scores import load_clip
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.parallel.mesh import make_mesh
from ivid2vid_jax.training import init_state, pipeline_export
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.training.params import flatten
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support import factory
from tests.support.command import run_command
from tests.support.tiny_run import tiny as tiny_config
from tests.support.train_runs import file_contents, saved_ema
from tests.video.test_video import write


def weights_of(path) -> dict[str, np.ndarray]:
    """The weights of a pipeline folder, by name."""
    params = flatten(load_params(open_pipeline_folder(path)))
    return {name: np.asarray(leaf) for name, leaf in params.items()}


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    """The config of a finished run: two steps of new temporal layers on a model."""
    folder = tmp_path_factory.mktemp("editor")
    model = factory.save_pipeline(folder / "model", factory.tiny_parts(**factory.ONE_LEVEL))
    config = tiny_config(
        folder / "run",
        model=str(model),
        net__temporal=("conv",),
        optim__trainable=("temporal",),
        steps=2,
        checkpoint__pipeline=True,
    )
    train(config)
    return config


def test_frozen_weights_are_exported_unchanged(editor):
    run = Path(editor.output)
    weights, base = weights_of(run / "pipeline"), weights_of(editor.model)
    assert len(base) > 100
    assert all(weights[name].tobytes() == leaf.tobytes() for name, leaf in base.items())
    new, averages = weights.keys() - base.keys(), saved_ema(run, 2)
    assert new and all("temp_convs" in name for name in new)
    assert averages.keys() == new
    assert all(np.array_equal(weights[name], averages[name]) for name in new)
    # zero before training
    outputs = [name for name in new if "conv4" in name and name.endswith("kernel")]
    assert any(np.any(weights[name]) for name in outputs)


@pytest.mark.parametrize("kinds", [("conv",), ("attention",), ()])
def test_reinit_temporal_replaces_the_models_temporal_layers(editor, tmp_path, kinds):
    """The 2D weights stay; the temporal layers that the model was trained with are dropped."""
    config = tiny_config(
        tmp_path, model=editor.output, net__temporal=kinds, net__reinit_temporal=True
    )
    mesh = make_mesh(config.mesh)
    folder, source = init_state.plan_networks(config, lambda: (), tmp_path)
    initial = init_state.load_initial_weights(config, folder, source, mesh)
    weights, base = initial.trained | initial.frozen, weights_of(editor.model)
    assert folder.unet.temporal == kinds
    assert all(np.array_equal(weights[name], leaf) for name, leaf in base.items())
    new = weights.keys() - base.keys()
    assert bool(new) == bool(kinds)
    outputs = [
        name for name in new if name.endswith("kernel") and ("conv4" in name or "proj_out" in name)
    ]
    assert bool(outputs) == bool(kinds) and not any(np.any(weights[name]) for name in outputs)
    run = tmp_path / "run"
    export = pipeline_export.Weights.collect(initial.trained, initial.frozen, source)
    assert not export.arrays.keys() & export.stored.keys()
    pipeline_export.write_pipeline(run, 1, folder, source, export)
    written = weights_of(run / "pipeline")
    assert written.keys() == weights.keys()
    assert all(np.array_equal(leaf, written[name]) for name, leaf in weights.items())
    # without --net.reinit-temporal, temporal weights that the net does not have are an error
    strict = dataclasses.replace(source, is_excluded=None)
    config = tiny_config(tmp_path, model=editor.output, net__temporal=kinds)
    with pytest.raises(UserError, match=r"unexpected .*temp"):
        init_state.load_initial_weights(config, folder, strict, mesh)


def test_reinit_temporal_needs_the_kinds_of_layers(editor, tmp_path):
    config = tiny_config(
        tmp_path, model=editor.output, net__temporal=None, net__reinit_temporal=True
    )
    with pytest.raises(UserError, match=r"--net\.reinit-temporal: .*--net\.temporal"):
        init_state.plan_networks(config, lambda: (), tmp_path)


@pytest.mark.parametrize(("kinds", "frames", "expected"), [(None, 1, 2), (None, 3, 3), ((), 1, 1)])
def test_training_on_images_keeps_a_video_editors_number_of_frames(
    editor, tmp_path, kinds, frames, expected
):
    config = tiny_config(tmp_path, model=editor.output, net__temporal=kinds, loader__frames=frames)
    folder, _ = init_state.plan_networks(config, lambda: (), tmp_path)
    assert folder.unet.num_frames == folder.sampling["frames"] == expected


@pytest.mark.parametrize("name", ["vae folder", "pipeline"])
def test_vae_takes_the_place_of_the_models_autoencoder(editor, tmp_path, name):
    """diffusers reads the exported autoencoder; its weights and scaling factor are the other's."""
    import torch
    from diffusers import AutoencoderKL

    other = tmp_path / "other"
    shutil.copytree(editor.model, other)
    with torch.no_grad():
        net = AutoencoderKL.from_pretrained(other / "vae")
        net.register_to_config(scaling_factor=0.7)
        net.quant_conv.weight += 1
        net.save_pretrained(other / "vae")
    vae = str(other / "vae" if name == "vae folder" else other)
    config = tiny_config(tmp_path, model=editor.model, vae=vae, optim__trainable=("unet",))
    folder, source = init_state.plan_networks(config, lambda: (), tmp_path)
    initial = init_state.load_initial_weights(config, folder, source, make_mesh(config.mesh))
    run = tmp_path / "run"
    weights = pipeline_export.Weights.collect(initial.trained, initial.frozen, source)
    pipeline_export.write_pipeline(run, 1, folder, source, weights)
    written = AutoencoderKL.from_pretrained(run / "pipeline" / "vae")
    expected = AutoencoderKL.from_pretrained(other / "vae").state_dict()
    assert written.config.scaling_factor == 0.7
    assert all(torch.equal(weight, expected[key]) for key, weight in written.state_dict().items())
    own = AutoencoderKL.from_pretrained(f"{editor.model}/vae").state_dict()
    assert any(not torch.equal(weight, expected[key]) for key, weight in own.items())


def test_a_vae_of_other_latents_is_refused(editor, tmp_path):
    other = factory.save_pipeline(tmp_path / "other", factory.tiny_parts(**factory.ONE_LEVEL))
    config_file = other / "vae" / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"latent_channels": 8}))
    for vae, message in ((other, "8 latent channels, .* take 4"), (tmp_path, "no config.json")):
        config = tiny_config(tmp_path, model=editor.model, vae=str(vae))
        with pytest.raises(UserError, match=f"--vae .*{message}"):
            init_state.plan_networks(config, lambda: (), tmp_path)


@pytest.mark.slow
def test_a_run_edits_clips(editor, tmp_path, capsys):
    clip, output = write(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    options = {
        "--model": editor.output,
        "--video": clip,
        "--output": output,
        "--instruction": "make it red",
        "--steps": "2",
    }
    argv = [word for option in options.items() for word in option]
    code, err, _ = run_command(capsys, edit.EditArgs, edit.run, *argv)
    assert code == 0, err
    settings = json.loads((tmp_path / "out.mp4.json").read_text())["settings"]
    assert output.is_file() and settings["size"] == 16 and settings["frames"] == 2
    assert pipeline.load(editor.output).folder.unet.temporal == ("conv",)


def test_a_run_whose_origin_changed_is_not_resumed(editor, tmp_path):
    run, model = tmp_path / "run", Path(editor.model)
    shutil.copytree(editor.output, run)
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    content, before = file.read_bytes(), file_contents(run, "config.json")
    config = dataclasses.replace(editor, output=str(run), steps=4)
    message = r"have changed .*vae/diffusion_pytorch_model\.safetensors\); restore the old files"
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=message):
            train(config)
    finally:
        file.write_bytes(content)
    assert file_contents(run, "config.json") == before


@pytest.mark.slow
def test_clip_is_trained_and_scores(tmp_path):
    """From scratch, resumed, then from that run's averaged weights."""
    run = tmp_path / "clip"
    options = dict(
        task="clip",
        optim__trainable=("clip",),
        loader__frames=1,
        checkpoint__pipeline=True,
        optim__schedule="constant",
    )
    train(tiny_config(run, steps=2, **options))
    train(tiny_config(run, steps=4, log__eval_every=4, **options))
    metrics = read_metrics(run, "train")
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]
    assert {"retrieved", "scale"} <= metrics[-1].keys()
    assert "retrieved" in read_metrics(run, "validation")[-1]
    clip, averages = load_clip(run), saved_ema(run, 4)
    weights = flatten({"clip": clip.params})
    assert weights.keys() == averages.keys()
    assert all(np.array_equal(weights[name], leaf) for name, leaf in averages.items())
    images, texts = clip.images(np.zeros((3, 20, 16, 3), np.uint8)), clip.texts(["a red circle"])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    assert (images @ texts.T).shape == (3, 1)
    options |= dict(model=str(run), steps=1, optim__warmup=0)
    train(tiny_config(tmp_path / "second", **options | dict(optim__lr=0.0)))
    second = flatten({"clip": load_clip(tmp_path / "second").params})
    assert all(np.allclose(second[name], leaf, rtol=1e-6) for name, leaf in weights.items())
    with pytest.raises(UserError, match=r"--loader\.size 24: .* takes images of 16 pixels"):
        train(tiny_config(tmp_path / "none", **options | dict(loader__size=24)))
