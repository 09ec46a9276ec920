"""Edits by JAX and by PyTorch in a process without JAX, for the tests of the exporter."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np

import ivid2vid_jax
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.weights.pipeline_folder import (
    load_params,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)
from tests.support import factory

STEPS, INSTRUCTION = 20, "make the red car blue"
SD2 = dict(attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True)
# name -> (changes of the tiny net's config, PyTorch class of its export)
NETS = {
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

# Runs a list of jobs with the import of jax and of this package blocked.
SCRIPT = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "ivid2vid_jax"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import numpy as np, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
for job in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(
        job["folder"], trust_remote_code=True, torch_dtype=getattr(torch, job["dtype"])
    )
    pipe.set_progress_bar_config(disable=True)
    inputs, scaled = np.load(job["input"]), {}
    output = pipe(
        inputs["clip"],
        job["instruction"],
        num_inference_steps=job["steps"],
        size=job["size"],
        frames=job["frames"],
        latents=torch.from_numpy(inputs["noise"]),
        output_type="np",
        callback_on_step_end=lambda pipe, i, t, tensors: scaled.update(tensors),
    )
    np.savez(
        job["output"],
        latents=scaled["latents"].numpy() / pipe.vae.config.scaling_factor,
        frames=np.rint(output.frames[0] * 255),
        unet=type(pipe.unet).__name__,
    )
    assert not {"jax", "flax"} & set(sys.modules)
"""


def torch_edits(work, jobs):
    """Runs edits in one process without JAX; returns their outputs: latents, frames, unet."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(work / "hf"), "HF_MODULES_CACHE": str(work / "code")}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=work,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [np.load(job["output"]) for job in jobs]


def jax_edit(folder, clip, noise, steps=STEPS, size=16, frames=8):
    """Edits a clip from initial noise [1, C, T, h, w]: (latents [1, C, T, h, w], frames)."""
    pipe = ivid2vid_jax.load(folder, "float32")
    settings = EditSettings(steps=steps, size=size, frames=frames).resolve(pipe.folder)
    source = pipe.vae_codec.encode(pipe.params["vae"], iter(clip))
    latents = pipe.sample(source, INSTRUCTION, settings, noise=noise[0].transpose(1, 2, 3, 0))
    pixels = np.stack(list(pipe.vae_codec.decode(pipe.params["vae"], latents)))
    return latents.transpose(3, 0, 1, 2)[None], pixels


def save_random_net(work, name, changes, base):
    """Saves a pipeline folder whose U-Net has a changed config and random weights."""
    folder = open_pipeline_folder(base)
    params = load_params(folder)
    unet = UNetConfig.from_json(factory.UNET_TINY | dict(num_frames=8) | changes)
    params["unet"] = factory.random_params(param_shapes("unet", unet), scale=0.1)
    folder = dataclasses.replace(folder, unet=unet, sampling=dict(steps=7, size=16))
    save_folder(work / name, folder, params)
    return work / name


def unit_noise(shape):
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def psnr(a, b):
    return 10 * np.log10(255.0**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


def assert_same_edit(label, actual, reference):
    """Latents agree to 1e-3 of the largest, frames to 40 dB; the figures are printed (-rP).

    actual: (latents, frames) of JAX; reference: output of PyTorch.
    """
    latents, frames = actual
    difference = factory.relative_difference(reference["latents"], latents)
    decibels = psnr(reference["frames"], frames)
    print(f"{label}: latents differ by {difference:.1e}, frames agree to {decibels:.0f} dB")
    assert np.abs(latents).max() > 0.1 and frames.std() > 5
    assert difference <= 1e-3 and decibels >= 40
