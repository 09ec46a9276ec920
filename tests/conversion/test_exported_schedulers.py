"""Exported pipelines with other schedulers: against diffusers' InstructPix2Pix, and against JAX."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    MotionAdapter,
    StableDiffusionInstructPix2PixPipeline,
    UNetMotionModel,
)
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image
from transformers import CLIPTokenizer

import ivid2vid_jax
from ivid2vid_jax.conversion import exporter
from ivid2vid_jax.conversion.pytorch.pipeline import InstructVid2VidPipeline
from ivid2vid_jax.diffusion.samplers import frame_noise
from ivid2vid_jax.inference.settings import EditSettings
from ivid2vid_jax.utils.names import SCHEDULER_CLASSES
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder, save_folder
from tests.conversion.edits import INSTRUCTION
from tests.support import factory

FRAMES, STEPS = 3, 4
CLIP = np.random.default_rng(0).integers(0, 256, (FRAMES, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """diffusers' InstructPix2Pix, and ours with the same weights and idle motion modules."""
    parts = factory.tiny_parts()
    factory.write_tokenizer(path := tmp_path_factory.mktemp("tokenizer"))
    parts["tokenizer"] = CLIPTokenizer.from_pretrained(path)
    stock = StableDiffusionInstructPix2PixPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    adapter = MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=8
    )
    for name, weight in adapter.named_parameters():
        if "proj_out" in name:
            torch.nn.init.zeros_(weight)
    parts["unet"] = UNetMotionModel.from_unet2d(parts["unet"], adapter).eval()
    ours = InstructVid2VidPipeline(**parts, size=16)
    for pipe in (stock, ours):
        pipe.set_progress_bar_config(disable=True)
    return stock, ours


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", dict(eta=0.5)),
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("PNDMScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("LMSDiscreteScheduler", {}),
        ("UniPCMultistepScheduler", {}),
    ],
)
def test_a_frame_is_edited_as_by_instruct_pix2pix(pipelines, name, options):
    """The scheduler that is set samples, with the generator's noise."""
    outputs = []
    for pipe, key in zip(pipelines, ("images", "frames"), strict=True):
        pipe.scheduler = getattr(diffusers, name).from_config(
            DDIMScheduler(**factory.SCHEDULER).config
        )
        for output_type in ("latent", "np"):
            output = pipe(
                prompt=INSTRUCTION,
                image=Image.fromarray(CLIP[0]),
                num_inference_steps=STEPS,
                guidance_scale=5.0,
                image_guidance_scale=1.7,
                negative_prompt="blurry",
                generator=torch.Generator().manual_seed(4),
                output_type=output_type,
                **options,
            )
            outputs.append(output[key])
    latents, images, our_latents, our_frames = outputs
    assert factory.relative_difference(our_latents[:, :, 0], latents) < 1e-5
    np.testing.assert_allclose(our_frames[0], images, atol=0.51 / 255)


@pytest.fixture(scope="module")
def jax_edit(motion_source):
    """jax_edit(seed, **settings): scaled latents [1, C, T, h, w] of an edit by JAX."""
    pipe = ivid2vid_jax.load(motion_source, "float32")
    source = pipe.vae_codec.encode(pipe.params["vae"], iter(CLIP))

    def edit(**settings):
        resolved = EditSettings(steps=STEPS, size=16, **settings).resolve(pipe.folder)
        latents = pipe.sample(source, INSTRUCTION, resolved)
        return latents.transpose(3, 0, 1, 2)[None] * pipe.folder.vae.scaling_factor

    return edit


def jax_noises(seed):
    """The noise of JAX's edit: the initial one, then that of each step, [1, C, T, h, w]."""
    for key in jax.random.split(jax.random.key(seed), STEPS + 1):
        noise = np.array(frame_noise(key, np.arange(FRAMES), (8, 8, 4)))
        yield torch.from_numpy(noise.transpose(3, 0, 1, 2)[None])


@pytest.mark.parametrize(
    ("name", "sampler", "eta"),
    [(*item, 0.0) for item in SCHEDULER_CLASSES.items()] + [("DDIMScheduler", "ddim", 0.6)],
)
def test_each_scheduler_is_our_sampler(pipe, jax_edit, monkeypatch, name, sampler, eta):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    noises = jax_noises(seed=5)
    first_noise, module = next(noises), type(pipe.scheduler).__module__
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **options: next(noises))
    options = dict(num_inference_steps=STEPS, size=16, eta=eta, output_type="latent")
    actual = pipe(CLIP, INSTRUCTION, latents=first_noise, **options).frames
    assert factory.relative_difference(actual, jax_edit(sampler=sampler, seed=5, eta=eta)) < 1e-5


@pytest.mark.slow
def test_guidance_ends_as_in_jax(pipe, jax_edit):
    """diffusers' own callback drops guidance after two steps; so does guide_to."""
    actual = pipe(
        CLIP,
        INSTRUCTION,
        num_inference_steps=STEPS,
        size=16,
        latents=next(jax_noises(seed=5)),
        output_type="latent",
        callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1),
    ).frames
    assert factory.relative_difference(actual, jax_edit(seed=5, guide_to=2 / STEPS)) < 1e-5
    assert factory.relative_difference(actual, jax_edit(seed=5)) > 1e-3


def test_the_exported_scheduler_is_the_folders_sampler(motion_source, tmp_path, load_exported):
    """sampling.json may name another sampler than the scheduler's class."""
    folder = open_pipeline_folder(motion_source)
    scheduler = {name: folder.scheduler[name] for name in folder.scheduler if name != "clip_sample"}
    folder = dataclasses.replace(folder, scheduler=scheduler, sampling=dict(sampler="dpm++"))
    save_folder(tmp_path / "source", folder, load_params(folder))
    exporter.export_folder(tmp_path / "source", tmp_path / "out")
    pipe = load_exported(tmp_path / "out")
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    assert EditSettings().resolve(open_pipeline_folder(tmp_path / "out")).sampler == "dpm++"
    assert DDIMScheduler.from_config(pipe.scheduler.config).config.clip_sample is False
