"""Exported folders: PyTorch without JAX edits as JAX does; files, model card and re-import."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionInstructPix2PixPipeline,
    UNet3DConditionModel,
    UNetMotionModel,
)
from safetensors.numpy import load_file

from ivid2vid_jax import assets, convert
from ivid2vid_jax.conversion import exporter, model_card
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.weights import safetensors_io
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.conversion.edits import (
    INSTRUCTION,
    NETS,
    STEPS,
    assert_same_edit,
    jax_edit,
    psnr,
    save_random_net,
    torch_edits,
    unit_noise,
)
from tests.support import factory
from tests.support.command import run_command

FRAMES = 5


class Edit(NamedTuple):
    source: object  # our folder
    exported: object  # the PyTorch folder
    jax: tuple  # (latents, frames)
    torch: dict  # latents, frames, unet


@pytest.fixture(scope="module")
def edits(tiny, tmp_path_factory):
    """Edits of all NETS by name, and of "motion" in float16 and in windows of 4 frames."""
    work = tmp_path_factory.mktemp("export")
    clip = np.random.default_rng(0).integers(0, 256, (FRAMES, 16, 16, 3), np.uint8)
    noise = unit_noise((1, 4, FRAMES, 8, 8))
    np.savez(work / "input.npz", clip=clip, noise=noise)
    sources = {
        name: save_random_net(work, f"source{i}", changes, tiny)
        for i, (name, (changes, _)) in enumerate(NETS.items())
    }
    # label, net, dtype, frames of a window
    cases = [(name, name, "float32", 8) for name in NETS]
    cases += [("float16", "motion", "float16", 8), ("windows", "motion", "float32", 4)]
    jobs, exported, jax_results = [], [], {}
    for i, (label, name, dtype, frames) in enumerate(cases):
        exported.append(work / f"exported{i}")
        exporter.export_folder(sources[name], exported[i], dtype)
        if dtype == "float16":
            jax_results[label] = jax_results[name]
        else:
            jax_results[label] = jax_edit(sources[name], clip, noise, frames=frames)
        jobs.append(
            dict(
                folder=str(exported[i]),
                dtype=dtype,
                input=str(work / "input.npz"),
                output=str(work / f"output{i}.npz"),
                instruction=INSTRUCTION,
                steps=STEPS,
                size=16,
                frames=frames,
            )
        )
    torch_results = torch_edits(work, jobs)
    return {
        label: Edit(sources[name], exported[i], jax_results[label], torch_results[i])
        for i, (label, name, _, _) in enumerate(cases)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_edit_without_jax_is_the_same(edits, name):
    """20 steps, three branches, the same initial noise."""
    edit = edits[name]
    assert str(edit.torch["unet"]) == NETS[name][1]
    assert_same_edit(name, edit.jax, edit.torch)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, STEPS])
def test_edit_with_the_embedded_model_is_the_same(tmp_path, steps):
    """A clip of the model's own world, at its own size."""
    source = assets.folder() / assets.DEFAULT
    exporter.export_folder(source, tmp_path / "out")
    clip = np.stack([frame.pixels for frame in open_clip(assets.clip(None)).frames()])
    folder = open_pipeline_folder(source)
    size = EditSettings().resolve(folder).size
    side = size // folder.vae.downscale
    noise = unit_noise((1, folder.vae.latent_channels, len(clip), side, side))
    np.savez(tmp_path / "input.npz", clip=clip, noise=noise)
    actual = jax_edit(source, clip, noise, steps, size=size, frames=len(clip))
    job = dict(
        folder=str(tmp_path / "out"),
        dtype="float32",
        input=str(tmp_path / "input.npz"),
        output=str(tmp_path / "edit.npz"),
        instruction=INSTRUCTION,
        steps=steps,
        size=size,
        frames=len(clip),
    )
    [reference] = torch_edits(tmp_path, [job])
    assert_same_edit("shapes-edit", actual, reference)


@pytest.mark.slow
def test_windows_are_the_same(edits):
    edit = edits["windows"]
    assert_same_edit("motion, in windows of 4 frames", edit.jax, edit.torch)
    assert factory.relative_difference(edits["motion"].jax[0], edit.jax[0]) > 1e-3


@pytest.mark.slow
def test_half_precision_is_close(edits):
    """The error of float16 is printed (-rP); frames agree to 30 dB."""
    _, _, (latents, frames), reference = edits["float16"]
    difference = factory.relative_difference(reference["latents"], latents)
    decibels = psnr(reference["frames"], frames)
    print(f"float16: latents differ by {difference:.1e}, frames agree to {decibels:.1f} dB")
    assert difference < 0.05 and decibels >= 30


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_exported_folder_loads_back_bit_exactly(edits, name):
    source = open_pipeline_folder(edits[name].source)
    exported = open_pipeline_folder(edits[name].exported)
    # fields that a stock class does not record, or records in another form
    ignored = dict(
        sample_size=None,
        num_frames=8,
        upcast_attention=False,
        temporal_dropout=0.0,
        attention_head_dim=1,
    )
    assert dataclasses.replace(exported.unet, **ignored) == dataclasses.replace(
        source.unet, **ignored
    )
    for level in (0, 1):
        assert exported.unet.heads(level) == source.unet.heads(level)
    jax.tree.map(np.testing.assert_array_equal, load_params(exported), load_params(source))


def test_2d_folder_is_exported_to_stock_classes(tiny, tmp_path):
    target, files = exporter.export_folder(tiny, tmp_path / "out")
    assert target.class_name == "UNet2DConditionModel"
    assert not [path for path in files if path.suffix == ".py"]
    assert not target.config.keys() & {"temporal", "group_norm", "num_frames"}
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "out")
    expected = load_file(tiny / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(pipe.unet.conv_in.weight, torch.from_numpy(expected))


@pytest.mark.slow
def test_stock_classes_load_without_warnings(edits, caplog):
    for name, cls in (("motion", UNetMotionModel), ("3D on SD 2", UNet3DConditionModel)):
        _, info = cls.from_pretrained(edits[name].exported / "unet", output_loading_info=True)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[problem], info
    assert "not expected" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "code"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_dtypes_shards_and_model_card(edits, tmp_path, dtype, code):
    facts = model_card.ModelCardFacts(
        {"steps": 12},
        "runwayml/stable-diffusion-v1-5",
        ("clips",),
        "CreativeML OpenRAIL-M",
        "CC BY 4.0",
    )
    exporter.export_folder(
        edits["3D on SD 2"].source, tmp_path / "out", dtype, facts, max_shard_bytes=60_000
    )
    shards = list((tmp_path / "out" / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for tensor in safetensors_io.read_headers(shards).values()} == {code}
    UNet3DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    readme = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "upcast_attention is set, which this class cannot say",
        "CreativeML OpenRAIL-M",
        "CC BY 4.0",
        "| steps | 12 |",
        dtype,
        "trust_remote_code=True",
    ):
        assert text in readme


@pytest.mark.slow
def test_export_command_is_atomic(edits, tmp_path, capsys):
    source = edits["motion"].source

    def run(*args):
        return run_command(capsys, convert.COMMANDS, convert.run, "export", *args)

    code, _, out = run(source, tmp_path / "out")
    assert code == 0 and "UNetMotionModel" in out and (tmp_path / "out" / "pipeline.py").is_file()
    code, err, _ = run(source, tmp_path / "out")
    assert code == 2 and "exists already" in err and "Traceback" not in err
    code, err, _ = run(tmp_path / "nothing", tmp_path / "new")
    assert code == 2 and "no such model folder" in err
    with pytest.raises(UserError, match="dtype 'int8' is unknown"):
        exporter.export_folder(source, tmp_path / "new", "int8")
    damaged = tmp_path / "damaged"
    exporter.export_folder(source, damaged)
    (damaged / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"0" * 50)
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        exporter.export_folder(damaged, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_model_card_has_the_facts_of_a_run(edits, tmp_path):
    run = tmp_path / "run"
    exporter.export_folder(edits["motion"].source, run / "pipeline")
    config = dict(
        data=["shapes"],
        model=None,
        seed=3,
        optim=dict(ema=0.999, lr=1e-3),
        loader=dict(batch=4, frames=8, images=0.3),
        loss=dict(mode="match"),
    )
    write_json(run / "config.json", config)
    write_json(run / "pipeline" / "training.json", {"step": 400})
    facts = model_card.collect_facts(run / "pipeline")
    assert facts.training["steps"] == 400
    assert facts.training["share of steps on single frames"] == 0.3
    assert facts.training["averaged weights (EMA decay)"] == 0.999
    assert facts.data_licence.startswith("Apache-2.0") and facts.base == "scratch"
