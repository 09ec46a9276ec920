"""Exported folders: PyTorch, in a process that cannot import jax, edits as JAX does; the files, the card, the way back."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from diffusers import UNet3DConditionModel, UNetMotionModel
from safetensors.numpy import load_file

import ivid2vid_jax
from ivid2vid_jax import assets, convert
from ivid2vid_jax.conversion import exporter, model_card
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.weights import safetensors_io
from ivid2vid_jax.weights.pipeline_folder import (
    load_params,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)
from tests.support import factory
from tests.support.command import run_command

STEPS, FRAMES, INSTRUCTION = 20, 5, "make the red car blue"
SD2 = dict(attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True)
KINDS = {  # name -> (changes of the tiny net, the class that holds it)
    "motion": (dict(temporal=["motion"]), "UNetMotionModel"),
    "motion, AnimateDiff's norms": (
        dict(
            temporal=["motion"],
            motion_group_norm="frame",
            group_norm="clip",
            use_motion_mid_block=True,
        ),
        "InflatedUNet3D",
    ),
    "3D on SD 2": (dict(temporal=["conv", "attention"]) | SD2, "UNet3DConditionModel"),
    "3D on SD 1": (dict(temporal=["conv", "attention"]), "InflatedUNet3D"),
    "Tune-A-Video": (
        dict(temporal=["tune_a_video"], spatial_attention="sparse_causal", group_norm="clip"),
        "InflatedUNet3D",
    ),
}

FRESH = """
import json, sys

class NoJax:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "ivid2vid_jax"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, NoJax())
import numpy as np, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
for job in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(job["folder"], trust_remote_code=True, torch_dtype=getattr(torch, job["dtype"]))
    pipe.set_progress_bar_config(disable=True)
    decode = pipe.decode
    kept = {}
    pipe.decode = lambda latents: decode(kept.setdefault("latents", latents))
    given = np.load(job["input"])
    frames = pipe(given["clip"], job["instruction"], steps=job["steps"], size=job["size"], frames=job["frames"], noise=torch.from_numpy(given["noise"]))
    np.savez(job["output"], latents=kept["latents"].float().numpy(), frames=frames, unet=type(pipe.unet).__name__)
    assert not {"jax", "flax"} & set(sys.modules)
"""


def fresh_edits(work, jobs):
    """Runs the jobs in one new process without jax; their results."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HOME": str(work / "hf"),
        "HF_MODULES_CACHE": str(work / "code"),
    }
    ran = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(jobs)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=work,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [np.load(job["output"]) for job in jobs]


def folder_of(work, name, changes, base):
    """Our pipeline folder of a kind, every weight random."""
    folder = open_pipeline_folder(base)
    params = load_params(folder)
    unet = UNetConfig.from_json(factory.UNET_TINY | dict(num_frames=8) | changes)
    params["unet"] = factory.noisy(param_shapes("unet", unet), scale=0.1)
    save_folder(
        work / name, dataclasses.replace(folder, unet=unet, sampling=dict(steps=7, size=16)), params
    )
    return work / name


def noise_of(shape):
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def jax_edit(folder, clip, noise, steps=STEPS, size=16, frames=8):
    """(latents [1, C, T, h, w], frames) of our own edit from the noise [1, C, T, h, w]."""
    pipe = ivid2vid_jax.load(folder, "float32")
    settings = EditSettings(steps=steps, size=size, frames=frames).resolve(pipe.folder)
    source = pipe.vae_codec.encode(pipe.params["vae"], iter(clip))
    latents = pipe.sample(source, INSTRUCTION, settings, noise=noise[0].transpose(1, 2, 3, 0))
    return latents.transpose(3, 0, 1, 2)[None], np.stack(
        list(pipe.vae_codec.decode(pipe.params["vae"], latents))
    )


def psnr(a, b):
    return 10 * np.log10(255.0**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


def assert_the_same_edit(label, ours, theirs):
    """<= 1e-3 of the largest latent, and the same clip to 40 dB; the figures are printed (pytest -rP)."""
    (latents, frames), far = ours, factory.relative(theirs["latents"], ours[0])
    print(
        f"{label}: latents {far:.1e} apart, frames equal to {psnr(theirs['frames'], frames):.0f} dB"
    )
    assert np.abs(latents).max() > 0.1 and frames.std() > 5
    assert far <= 1e-3 and psnr(theirs["frames"], frames) >= 40


@pytest.fixture(scope="module")
def edits(tiny, tmp_path_factory):
    """Name -> (folder, exported folder, JAX's edit, PyTorch's edit); "motion" also in float16, and in windows."""
    work = tmp_path_factory.mktemp("export")
    clip, noise = (
        np.random.default_rng(0).integers(0, 256, (FRAMES, 16, 16, 3), np.uint8),
        noise_of((1, 4, FRAMES, 8, 8)),
    )
    np.savez(work / "input.npz", clip=clip, noise=noise)
    out, jobs = {}, []
    for name, (changes, _) in KINDS.items():
        for dtype, frames in [("float32", 8)] + [("float16", 8), ("float32", 4)] * (
            name == "motion"
        ):
            label = name + ("" if (dtype, frames) == ("float32", 8) else f", {dtype}, {frames}")
            path = work / f"{len(jobs)}-in" if name not in out else out[name][0]
            path = path if path.exists() else folder_of(work, path.name, changes, tiny)
            exporter.export_folder(path, work / f"{len(jobs)}-out", dtype)
            ours = (
                out[name][2] if dtype == "float16" else jax_edit(path, clip, noise, frames=frames)
            )
            out[label] = [path, work / f"{len(jobs)}-out", ours]
            job = dict(
                folder=str(out[label][1]),
                dtype=dtype,
                input=str(work / "input.npz"),
                output=str(work / f"{len(jobs)}.npz"),
            )
            jobs.append(job | dict(instruction=INSTRUCTION, steps=STEPS, size=16, frames=frames))
    for label, edit in zip(out, fresh_edits(work, jobs), strict=True):
        out[label].append(edit)
    return out


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_edit_without_jax_is_the_same(edits, name):
    """20 steps, three branches, from the same noise."""
    _, _, ours, theirs = edits[name]
    assert str(theirs["unet"]) == KINDS[name][1]
    assert_the_same_edit(name, ours, theirs)


def test_the_embedded_editor_is_the_same(tmp_path):
    """Its exported edit of a clip of its own world, 20 steps, at its own size."""
    source = assets.folder() / assets.DEFAULT
    exporter.export_folder(source, tmp_path / "out")
    clip = np.stack([frame.pixels for frame in open_clip(assets.clip(None)).frames()])
    latent, size = (
        open_pipeline_folder(source).vae,
        EditSettings().resolve(open_pipeline_folder(source)).size,
    )
    noise = noise_of(
        (1, latent.latent_channels, len(clip), size // latent.downscale, size // latent.downscale)
    )
    np.savez(tmp_path / "input.npz", clip=clip, noise=noise)
    ours = jax_edit(source, clip, noise, size=size, frames=len(clip))
    job = dict(
        folder=str(tmp_path / "out"),
        dtype="float32",
        input=str(tmp_path / "input.npz"),
        output=str(tmp_path / "edit.npz"),
        instruction=INSTRUCTION,
    )
    [theirs] = fresh_edits(tmp_path, [job | dict(steps=STEPS, size=size, frames=len(clip))])
    assert_the_same_edit("shapes-edit", ours, theirs)


def test_long_clips_go_through_windows_alike(edits):
    _, _, ours, theirs = edits["motion, float32, 4"]
    assert_the_same_edit("motion, in windows of 4 frames", ours, theirs)
    assert factory.relative(edits["motion"][2][0], ours[0]) > 1e-3


def test_half_precision_is_close(edits):
    """What float16 costs is printed (pytest -rP); the clip stays the same to 30 dB."""
    _, _, (latents, frames), theirs = edits["motion, float16, 8"]
    far = factory.relative(theirs["latents"], latents)
    print(
        f"motion, float16: latents {far:.1e} apart, frames equal to {psnr(theirs['frames'], frames):.1f} dB"
    )
    assert far < 0.05 and psnr(theirs["frames"], frames) >= 30


@pytest.mark.parametrize("name", KINDS)
def test_an_exported_folder_is_still_ours_to_the_bit(edits, name):
    path, exported = edits[name][:2]
    ours, back = open_pipeline_folder(path), open_pipeline_folder(exported)
    informative = dict(sample_size=None, num_frames=8, upcast_attention=False, temporal_dropout=0.0)
    assert dataclasses.replace(
        back.unet, attention_head_dim=1, **informative
    ) == dataclasses.replace(ours.unet, attention_head_dim=1, **informative)
    assert [back.unet.heads(level) for level in (0, 1)] == [
        ours.unet.heads(level) for level in (0, 1)
    ]
    jax.tree.map(np.testing.assert_array_equal, load_params(back), load_params(ours))


def test_two_dimensional_folders_stay_stock(tiny, tmp_path):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    held, written = exporter.export_folder(tiny, tmp_path / "out")
    assert held.class_name == "UNet2DConditionModel" and not [
        path for path in written if path.suffix == ".py"
    ]
    assert not held.config.keys() & {"temporal", "group_norm", "num_frames"}
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(
        pipe.unet.conv_in.weight,
        torch.from_numpy(
            load_file(tiny / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
        ),
    )


def test_stock_classes_take_the_weights_without_a_word(edits, caplog):
    for name, cls in (("motion", UNetMotionModel), ("3D on SD 2", UNet3DConditionModel)):
        net, info = cls.from_pretrained(edits[name][1] / "unet", output_loading_info=True)
        assert not any(
            info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        ), info
    assert "not expected" not in caplog.text


@pytest.mark.parametrize(("dtype", "code"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_types_shards_and_the_card(edits, tmp_path, dtype, code):
    source = edits["3D on SD 2"][0]
    facts = model_card.ModelCardFacts(
        {"steps": 12},
        "runwayml/stable-diffusion-v1-5",
        ("clips",),
        "CreativeML OpenRAIL-M",
        "CC BY 4.0",
    )
    exporter.export_folder(source, tmp_path / "out", dtype, facts, max_shard_bytes=60_000)
    shards = list((tmp_path / "out" / "unet").glob("*.safetensors"))
    assert len(shards) > 1 and {
        entry.dtype for entry in safetensors_io.read_headers(shards).values()
    } == {code}
    UNet3DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    readme = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "upcast_attention is set, which this class cannot say",
        "CreativeML OpenRAIL-M",
        "CC BY 4.0",
        "| steps | 12 |",
        dtype,
        "trust_remote_code=True",
    ):
        assert said in readme


def test_the_command_writes_all_or_nothing(edits, tmp_path, capsys):
    source = edits["motion"][0]
    code, _, out = run_command(
        capsys, convert.COMMANDS, convert.run, "export", source, tmp_path / "out"
    )
    assert code == 0 and "UNetMotionModel" in out and (tmp_path / "out" / "pipeline.py").is_file()
    code, said, _ = run_command(
        capsys, convert.COMMANDS, convert.run, "export", source, tmp_path / "out"
    )
    assert code == 2 and "exists already" in said and "Traceback" not in said
    code, said, _ = run_command(
        capsys, convert.COMMANDS, convert.run, "export", tmp_path / "nothing", tmp_path / "new"
    )
    assert code == 2 and "no such model folder" in said
    with pytest.raises(UserError, match="dtype 'int8' is unknown"):
        exporter.export_folder(source, tmp_path / "new", "int8")
    broken = tmp_path / "broken"
    exporter.export_folder(source, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"0" * 50)
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        exporter.export_folder(broken, tmp_path / "new")
    assert not (tmp_path / "new").exists() and not [
        path for path in tmp_path.iterdir() if path.name.startswith(".")
    ]


def test_a_runs_own_records_are_on_its_card(edits, tmp_path):
    run = tmp_path / "run"
    exporter.export_folder(edits["motion"][0], run / "pipeline")
    config = dict(
        data=["shapes"],
        model=None,
        seed=3,
        optim=dict(ema=0.999, lr=1e-3),
        loader=dict(batch=4, frames=8),
        loss=dict(mode="match"),
    )
    write_json(run / "config.json", config)
    write_json(run / "pipeline" / "training.json", {"step": 400})
    facts = model_card.collect_facts(run / "pipeline")
    assert (
        facts.training["steps"] == 400 and facts.training["averaged weights (EMA decay)"] == 0.999
    )
    assert facts.data_licence.startswith("Apache-2.0") and facts.base == "scratch"
