"""Exported pipelines behave as diffusers' pipelines do: call, callbacks, offload, saved folders."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionInstructPix2PixPipeline
from PIL import Image

from ivid2vid_jax.conversion import exporter
from ivid2vid_jax.inference.settings import EditSettings
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder
from ivid2vid_jax.weights.tokenizer import load_tokenizer
from tests.conversion.edits import INSTRUCTION, NETS, psnr, save_random_net
from tests.support import factory

CLIP = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
PROMPTS = [INSTRUCTION, "the car is red"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def edit(pipe, video=CLIP, prompt=INSTRUCTION, **options):
    """Edited frames, in two steps from a fixed seed unless options say otherwise."""
    defaults = dict(num_inference_steps=2, size=16, output_type="np", generator=seeded())
    return pipe(video, prompt, **defaults | options).frames


def test_the_call_takes_diffusers_names(pipe):
    """All arguments of InstructPix2Pix but those of IP adapters and attention."""
    theirs = inspect.signature(StableDiffusionInstructPix2PixPipeline.__call__).parameters
    absent = {"ip_adapter_image", "ip_adapter_image_embeds", "cross_attention_kwargs", "kwargs"}
    absent |= {"num_images_per_prompt"}
    ours = inspect.signature(type(pipe).__call__).parameters
    assert theirs.keys() - ours.keys() == absent
    assert list(ours)[1:3] == ["video", "prompt"] and "num_videos_per_prompt" in ours


def test_output_types(pipe):
    frames = edit(pipe)
    assert frames.shape == (1, *CLIP.shape) and frames.dtype == np.float32
    assert 0 <= frames.min() < frames.max() <= 1
    tensor = edit(pipe, output_type="pt")
    np.testing.assert_array_equal(tensor.movedim(2, -1).numpy(), frames)
    [images] = edit(pipe, output_type="pil")
    assert all(isinstance(image, Image.Image) for image in images)
    np.testing.assert_array_equal(np.stack(images), np.rint(frames[0] * 255))
    latents = edit(pipe, output_type="latent")
    assert latents.shape == (1, 4, 3, 8, 8)
    assert torch.equal(edit_tuple(pipe)[0], latents)
    with pytest.raises(ValueError, match="output_type 'gif' must be one of"):
        edit(pipe, output_type="gif")


def edit_tuple(pipe):
    options = dict(num_inference_steps=2, size=16, output_type="latent", generator=seeded())
    result = pipe(CLIP, INSTRUCTION, return_dict=False, **options)
    assert isinstance(result, tuple) and len(result) == 1
    return result


def test_kinds_of_clips(pipe):
    """Arrays, tensors, images and lists of them give the same edit."""
    expected = edit(pipe)
    scaled = CLIP.astype(np.float32) / 255
    tensor = torch.from_numpy(scaled).movedim(-1, 1)
    kinds = [scaled, tensor, tensor[None], list(tensor), [Image.fromarray(frame) for frame in CLIP]]
    for clip in kinds:
        np.testing.assert_array_equal(edit(pipe, clip), expected)
    still = edit(pipe, None, image=Image.fromarray(CLIP[0]))
    np.testing.assert_array_equal(still, edit(pipe, CLIP[:1]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(video=3), TypeError, "a clip cannot be int"),
        (dict(video=None), ValueError, "as video or as image"),
        (dict(image=CLIP), ValueError, "as video or as image"),
        (dict(video=CLIP[..., :2]), ValueError, r"got uint8 \[3, 16, 16, 2\]"),
        (dict(video=CLIP / 100), ValueError, "from 0 to 1, got 0 to 2.55"),
        (dict(prompt=None), ValueError, "prompt or prompt_embeds"),
        (dict(prompt=5), TypeError, "prompt must be a str or a list of str, got int"),
        (dict(prompt=PROMPTS, generator=[seeded()]), ValueError, "1 generators do not fit 2"),
        (dict(prompt=PROMPTS, negative_prompt=["a"] * 3), ValueError, "3 negative prompts"),
        (dict(latents=torch.zeros(1, 4, 3, 4, 4)), ValueError, r"must be \[1, 4, 3, 8, 8\]"),
        (dict(shared_noise=2), ValueError, "shared_noise 2"),
        (dict(num_inference_steps=0), ValueError, "num_inference_steps 0 must be 1 or more"),
        (dict(callback_on_step_end_tensor_inputs=["noise"]), ValueError, "must be among"),
        (dict(strength=1), TypeError, "strength"),
        (dict(guidance_scale=2.0, text_scale=3.0), TypeError, "both were given"),
    ],
)
def test_wrong_arguments_are_refused(pipe, options, error, message):
    with pytest.raises(error, match=message):
        edit(pipe, **options)


def test_old_names_warn(pipe):
    expected = edit(pipe, generator=seeded(3), guidance_scale=4.0, image_guidance_scale=1.2)
    with pytest.warns(FutureWarning) as warnings:
        output = pipe(
            CLIP,
            instruction=INSTRUCTION,
            negative="",
            steps=2,
            text_scale=4.0,
            video_scale=1.2,
            seed=3,
            size=16,
            output_type="np",
        )
    np.testing.assert_array_equal(output.frames, expected)
    future = [warning for warning in warnings if warning.category is FutureWarning]
    text = " ".join(str(warning.message) for warning in future)
    for name in ("prompt", "negative_prompt", "num_inference_steps", "image_guidance_scale"):
        assert f"{name}=..." in text
    assert {warning.filename for warning in future} == {__file__}


def test_generators_reproduce(pipe):
    first = edit(pipe)
    np.testing.assert_array_equal(edit(pipe), first)
    assert not np.array_equal(edit(pipe, generator=seeded(1)), first)
    torch.manual_seed(0)
    np.testing.assert_array_equal(edit(pipe, generator=None), first)
    assert not np.array_equal(edit(pipe, generator=None), first)
    assert not np.array_equal(edit(pipe, shared_noise=1.0), first)


def test_batches_are_single_edits(pipe):
    generators = [seeded(i) for i in range(4)]
    options = dict(negative_prompt=["blurry", "dark"], num_videos_per_prompt=2)
    batch = edit(pipe, prompt=PROMPTS, generator=generators, output_type="latent", **options)
    for i, (prompt, negative) in enumerate(
        zip(np.repeat(PROMPTS, 2), ("blurry", "blurry", "dark", "dark"), strict=True)
    ):
        single = edit(
            pipe,
            prompt=str(prompt),
            negative_prompt=negative,
            generator=seeded(i),
            output_type="latent",
        )
        assert factory.relative_difference(batch[i], single[0]) < 1e-5


def test_embeddings_replace_prompts(pipe):
    expected = edit(pipe, negative_prompt="blurry", output_type="latent")
    text, null = pipe.encode_text([INSTRUCTION, "blurry"]).split(1)
    embeddings = dict(prompt_embeds=text, negative_prompt_embeds=null)
    assert torch.equal(edit(pipe, prompt=None, output_type="latent", **embeddings), expected)
    assert not torch.equal(edit(pipe, output_type="latent"), expected)


def test_callbacks_see_and_change_tensors(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), {name: t.shape for name, t in tensors.items()}))
        if step == pipe.num_timesteps - 1:
            return {"latents": torch.zeros_like(tensors["latents"])}
        return None

    names = ["latents", "prompt_embeds", "image_latents"]
    options = dict(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    latents = edit(pipe, num_inference_steps=3, output_type="latent", **options)
    assert not latents.any()
    shapes = dict(latents=(1, 4, 3, 8, 8), prompt_embeds=(3, 77, 32), image_latents=(1, 4, 3, 8, 8))
    assert seen == [(i, t, shapes) for i, t in enumerate(pipe.scheduler.timesteps.tolist())]


@pytest.mark.parametrize("name", ["prompt_embeds", "image_latents"])
def test_callbacks_change_what_the_net_sees(pipe, name):
    def callback(pipe, step, timestep, tensors):
        return {name: 2 * tensors[name]}

    options = dict(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[name])
    assert not np.array_equal(edit(pipe, **options), edit(pipe))


def test_interruption_keeps_the_latents_so_far(pipe):
    trail = []

    def callback(pipe, step, timestep, tensors):
        trail.append(tensors["latents"])
        pipe._interrupt = step == 1

    options = dict(num_inference_steps=4, output_type="latent", callback_on_step_end=callback)
    latents = edit(pipe, **options)
    assert len(trail) == 2 and torch.equal(latents, trail[-1])
    assert not pipe.interrupt or edit(pipe, num_inference_steps=1).any()


def test_guidance_scales_have_effect(pipe):
    edits = [
        edit(pipe, guidance_scale=text, image_guidance_scale=clip)
        for text, clip in ((7.5, 1.5), (3.0, 1.5), (7.5, 3.0), (1.0, 1.0))
    ]
    for i, frames in enumerate(edits):
        assert not any(np.array_equal(frames, other) for other in edits[:i])


def test_bfloat16_is_close(exported, load_exported, pipe):
    expected = edit(pipe)
    assert psnr(255 * edit(pipe.to("cpu", torch.bfloat16)), 255 * expected) > 25
    assert pipe.unet.dtype == torch.bfloat16


def test_model_cpu_offload(pipe, monkeypatch):
    """All tensors are made on the device of the hooks, never on that of the idle weights."""
    expected = edit(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    monkeypatch.setattr(type(pipe), "device", property(lambda self: torch.device("meta")))
    for _ in range(2):
        np.testing.assert_array_equal(edit(pipe), expected)


def test_models_are_offloaded_in_order(pipe):
    pipe.enable_model_cpu_offload(device="cpu")
    order = []
    for name in ("text_encoder", "unet", "vae"):
        hook = getattr(pipe, name)._hf_hook
        pre_forward = hook.pre_forward
        hook.pre_forward = lambda *args, name=name, call=pre_forward, **kwargs: (
            order.append(name),
            call(*args, **kwargs),
        )[1]
    hooks = pipe._all_hooks
    edit(pipe, num_inference_steps=1)
    assert pipe._all_hooks is not hooks  # they were renewed, so that all models are offloaded
    assert list(dict.fromkeys(order)) == ["text_encoder", "vae", "unet"]
    assert order[-1] == "vae" and not order.count("unet") > 1


def test_progress_bar(pipe, capsys):
    edit(pipe, num_inference_steps=3)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="editing")
    edit(pipe, num_inference_steps=3)
    assert "editing: 100%" in (text := capsys.readouterr().err) and "3/3" in text


@pytest.fixture(params=["UNetMotionModel", "InflatedUNet3D"])
def any_export(request, tiny, tmp_path, motion_source, exported):
    """A pipeline folder and its export, with a U-Net of diffusers or of our own."""
    if request.param == "UNetMotionModel":
        return motion_source, exported
    source = save_random_net(tmp_path, "source", NETS["Tune-A-Video"][0], tiny)
    exporter.export_folder(source, tmp_path / "exported")
    return source, tmp_path / "exported"


def test_saved_folder_loads_as_the_exported_one(any_export, tmp_path, load_exported):
    source, exported = any_export
    pipe = load_exported(exported)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = edit(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    saved = load_exported(tmp_path / "saved")
    assert isinstance(saved.scheduler, EulerDiscreteScheduler)
    np.testing.assert_array_equal(edit(saved), expected)
    assert saved.config.steps == 7
    assert code_files(tmp_path / "saved") == code_files(exported)
    before, after = (
        read_json(path / "model_index.json") for path in (exported, tmp_path / "saved")
    )
    assert after["unet"] == before["unet"] and after["_class_name"] == before["_class_name"]
    for folder in (exported, tmp_path / "saved"):  # this package reads both, with the same defaults
        load_tokenizer(folder / "tokenizer")
        settings = EditSettings().resolve(open_pipeline_folder(folder))
        assert settings == EditSettings().resolve(open_pipeline_folder(source))


def code_files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*.py")}


def test_code_of_another_folder(exported, load_exported, pipe):
    """`custom_pipeline` names the file or the folder with the code."""
    expected = edit(pipe)
    for code in (exported, exported / "pipeline.py"):
        other = load_exported(exported, custom_pipeline=str(code))
        np.testing.assert_array_equal(edit(other), expected)
