"""The whole edit: against diffusers' pipeline, deterministic, windowed or not, without transfers or recompilation."""

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)

import ivid2vid_jax
from ivid2vid_jax.inference import sampling_loop
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.utils.errors import UserError
from tests.support import factory

RNG = np.random.default_rng(0)
INSTRUCTION = "make the red car blue"


@pytest.fixture(scope="module")
def pipe(tiny):
    return ivid2vid_jax.load(tiny)


@pytest.fixture(scope="module")
def stock(tiny):
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        tiny, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip(frames, height=16, width=16):
    return RNG.integers(0, 256, (frames, height, width, 3), np.uint8)


def channels_first(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def noise_of(seed, steps, frames, shape):
    """The noise that an edit draws: unit noise to start from, then that of each step, [steps + 1, T, C, h, w] for torch."""
    keys = jax.random.split(jax.random.key(seed), steps + 1)
    return [
        channels_first(np.asarray(sampling_loop.frame_noise(key, np.arange(frames), shape)))
        for key in keys
    ]


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
@pytest.mark.parametrize(
    ("negative", "text_scale", "video_scale"), [("", 7.5, 1.5), ("snow", 4.0, 2.0)]
)
def test_equals_diffusers_instruct_pix2pix(
    tiny, stock, monkeypatch, sampler, negative, text_scale, video_scale
):
    """Pixels in, pixels out, three branches, T = 1, the same noise."""
    frame, noise = clip(1), iter(noise_of(seed=7, steps=10, frames=1, shape=(8, 8, 4)))
    first = next(noise)
    if sampler == "euler_ancestral":
        stock.scheduler = EulerAncestralDiscreteScheduler.from_pretrained(
            tiny, subfolder="scheduler"
        )
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
            lambda *a, **k: next(noise),
        )
    else:
        stock.scheduler = factory.ddim()
    theirs = stock(
        prompt=INSTRUCTION,
        image=channels_first(frame).float() / 255,
        negative_prompt=negative or None,
        num_inference_steps=10,
        guidance_scale=text_scale,
        image_guidance_scale=video_scale,
        latents=first,
        output_type="np",
    ).images
    options = dict(
        steps=10,
        sampler=sampler,
        text_scale=text_scale,
        video_scale=video_scale,
        negative=negative,
        size=16,
        seed=7,
    )
    ours = ivid2vid_jax.load(tiny).edit(frame, INSTRUCTION, **options)
    assert 0.02 < theirs.mean() < 0.98 and theirs.std() > 0.05
    np.testing.assert_allclose(
        ours / 255.0, theirs, atol=0.0025
    )  # half a grey level of rounding is 0.002


def test_a_seed_repeats_and_another_differs(pipe):
    video, options = clip(3), dict(steps=2, size=16)
    first = pipe.edit(video, INSTRUCTION, seed=5, **options)
    assert first.shape == video.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, pipe.edit(video, INSTRUCTION, seed=5, **options))
    assert (first != pipe.edit(video, INSTRUCTION, seed=6, **options)).mean() > 0.5
    assert (first != pipe.edit(video, "make it snow", seed=5, **options)).mean() > 0.1
    assert (first != pipe.edit(video, INSTRUCTION, seed=5, negative="car", **options)).mean() > 0.01


def run_loop(pipe, source, windows, sampler_name="euler_ancestral", steps=4, seed=1):
    from ivid2vid_jax.diffusion.samplers import make_sampler

    settings = EditSettings(steps=steps, sampler=sampler_name).resolve(pipe.folder)
    table = make_sampler(sampler_name, pipe.schedule, steps)
    guidance = pipe.guidance(INSTRUCTION, settings)
    *ticks, latents = pipe.sampling_loop(
        pipe.params["unet"], source, guidance, table, seed, windows
    )
    assert len(ticks) == steps * len(windows)
    return latents


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpm++"])
def test_windowed_equals_whole_where_windows_see_all_they_need(pipe, name):
    """This net works frame by frame, so cutting the clip must change nothing but the last bits."""
    source = RNG.standard_normal((10, 8, 8, 4)).astype(np.float32)
    whole = run_loop(pipe, source, [slice(0, 10)], name)
    for windows in ([slice(0, 6), slice(4, 10)], [slice(0, 4), slice(3, 7), slice(6, 10)]):
        np.testing.assert_allclose(
            run_loop(pipe, source, windows, name), whole, atol=2e-3 * np.abs(whole).max()
        )


def test_one_window_through_either_loop_is_the_same(pipe, monkeypatch):
    source = RNG.standard_normal((5, 8, 8, 4)).astype(np.float32)
    whole = run_loop(pipe, source, [slice(0, 5)])
    monkeypatch.setattr(pipe.sampling_loop, "sample_one_window", pipe.sampling_loop.sample_windows)
    np.testing.assert_allclose(
        run_loop(pipe, source, [slice(0, 5)]), whole, atol=1e-3 * np.abs(whole).max()
    )


def test_predictions_are_blended_without_a_jump():
    weights = sampling_loop.blend_weights([slice(0, 8), slice(6, 14), slice(9, 17)], 17)
    total = np.zeros(17)
    for weight, window in zip(weights, [slice(0, 8), slice(6, 14), slice(9, 17)], strict=True):
        assert weight.min() > 0
        total[window] += weight
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_the_loop_transfers_nothing_and_dispatches_once_a_step(pipe):
    source = RNG.standard_normal((4, 8, 8, 4)).astype(np.float32)
    settings = EditSettings(steps=5, sampler="ddim").resolve(pipe.folder)
    from ivid2vid_jax.diffusion.samplers import make_sampler

    ran = pipe.sampling_loop(
        pipe.params["unet"],
        source,
        pipe.guidance(INSTRUCTION, settings),
        make_sampler("ddim", pipe.schedule, 5),
        0,
        [slice(0, 4)],
    )
    next(ran)
    calls, compiled = [], pipe.sampling_loop.whole
    pipe.sampling_loop.whole = lambda *a: calls.append(1) or compiled(*a)
    try:
        with jax.transfer_guard("disallow"):
            for _ in range(4):
                assert next(ran) is None
    finally:
        pipe.sampling_loop.whole = compiled
    assert len(calls) == 4
    assert next(ran).shape == source.shape


def test_nothing_is_compiled_twice(pipe):
    pipe.edit(clip(4), INSTRUCTION, steps=2, size=16)
    before = (
        pipe.sampling_loop.whole._cache_size(),
        pipe.vae_codec._encode._cache_size(),
        pipe.vae_codec._decode._cache_size(),
        pipe._encode_text._cache_size(),
    )
    pipe.edit(
        clip(4), "another instruction", steps=3, size=16, sampler="dpm++", text_scale=3.0, seed=9
    )
    assert before == (
        pipe.sampling_loop.whole._cache_size(),
        pipe.vae_codec._encode._cache_size(),
        pipe.vae_codec._decode._cache_size(),
        pipe._encode_text._cache_size(),
    )


def test_guidance_acts_in_its_interval_alone(pipe):
    video, options = clip(2), dict(steps=4, size=16, text_scale=5.0, video_scale=2.0)
    plain = pipe.edit(video, INSTRUCTION, **options | dict(text_scale=1.0, video_scale=1.0))
    np.testing.assert_array_equal(pipe.edit(video, INSTRUCTION, guide_from=1.0, **options), plain)
    whole, half = (
        pipe.edit(video, INSTRUCTION, **options),
        pipe.edit(video, INSTRUCTION, guide_to=0.5, **options),
    )
    assert (
        (whole != plain).mean() > 0.1
        and (half != plain).mean() > 0.1
        and (half != whole).mean() > 0.1
    )
    asked = pipe.guidance(
        INSTRUCTION, EditSettings(guide_from=0.25, guide_to=0.75, **options).resolve(pipe.folder)
    )
    assert [len(each.weights) for each in asked] == [1, 3, 3, 1]


@pytest.mark.parametrize(("sampler", "frames"), [("ddim", 16), ("euler_ancestral", 3)])
def test_frames_of_a_still_clip_are_alike_under_shared_noise(pipe, sampler, frames):
    """In one window and in several, with noise at the start alone and in every step. This net has no temporal layers."""
    still = np.broadcast_to(clip(1), (5, 16, 16, 3))
    apart, alike = (
        pipe.edit(
            still,
            INSTRUCTION,
            steps=2,
            size=16,
            sampler=sampler,
            frames=frames,
            shared_noise=shared,
        ).astype(int)
        for shared in (0.0, 1.0)
    )
    assert np.abs(alike - alike[:1]).max() <= 1 and np.abs(apart - apart[:1]).max() > 30


def test_settings_come_from_the_folder_then_from_the_package(pipe, monkeypatch):
    settings = EditSettings().resolve(pipe.folder)
    assert (
        settings.text_scale,
        settings.video_scale,
        settings.sampler,
        settings.size,
        settings.frames,
    ) == (7.5, 1.5, "ddim", 16, 16)
    monkeypatch.setattr(pipe.folder, "sampling", dict(steps=9, text_scale=3.0, sampler="dpm++"))
    settings = EditSettings(text_scale=4.0).resolve(pipe.folder)
    assert (settings.steps, settings.text_scale, settings.sampler) == (9, 4.0, "dpm++")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps=0), "steps 0 must be between 1 and 1000"),
        (dict(size=0), "size 0"),
        (dict(text_scale=float("nan")), "text_scale nan"),
        (dict(video_scale=-1.0), "video_scale -1"),
        (dict(sampler="plms"), "'plms' is unknown; choose one of ddim"),
        (dict(frames=0), "frames 0"),
        (dict(eta=0.5, sampler="dpm++"), "eta 0.5 is for the ddim sampler"),
        (dict(rescale=2.0), "rescale 2.0"),
        (dict(seed=-1), "seed -1"),
        (dict(size=1), "size 1 is too small"),
    ],
)
def test_settings_out_of_range(pipe, settings, message):
    with pytest.raises(UserError, match=message):
        pipe.edit(clip(2), INSTRUCTION, **{"size": 16, **settings})


def test_what_cannot_be_edited(pipe, tmp_path):
    with pytest.raises(UserError, match="the instruction is empty"):
        pipe.edit(clip(2), "  ", steps=1, size=16)
    with pytest.raises(UserError, match=r"uint8 \[T, H, W, 3\] with T >= 1, got float64 \[2, 4\]"):
        pipe.edit(np.zeros((2, 4)), INSTRUCTION)
    with pytest.raises(TypeError, match="unknown settings strength"):
        pipe.edit(clip(2), INSTRUCTION, strength=0.5)
    base = ivid2vid_jax.load(factory.save(tmp_path / "base", factory.tiny(in_channels=4)))
    with pytest.raises(
        UserError, match="takes 4 latent channels and no source clip; an editor takes 8"
    ):
        base.edit(clip(2), INSTRUCTION, steps=1, size=16)


def test_a_long_instruction_is_cut_aloud(pipe, caplog):
    long = "make it snow " * 700
    with caplog.at_level("WARNING"):
        cut = pipe.encode_text([long.strip()])
    assert "is cut at 77; what is not read" in caplog.text
    np.testing.assert_array_equal(cut, pipe.encode_text([long + "and much more"]))


def test_text_is_padded_as_the_folder_says(tmp_path):
    """Stable Diffusion 2.x pads with "!", 1.x with the end token."""
    from ivid2vid_jax.inference.pipeline import load_tokenizer

    for pad in ("!", "<|endoftext|>"):
        factory.write_tokenizer(tmp_path / pad[0], pad)
        tokenizer = load_tokenizer(tmp_path / pad[0])
        ids = tokenizer(["a"], padding="max_length", max_length=77)["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == pad


def test_bfloat16_edits_look_alike(tiny, pipe):
    video, options = clip(2), dict(steps=3, size=16, text_scale=1.0, video_scale=1.0)
    full, half = (
        pipe.edit(video, INSTRUCTION, **options),
        ivid2vid_jax.load(tiny, dtype="bfloat16").edit(video, INSTRUCTION, **options),
    )
    assert 0 < np.abs(full.astype(float) - half).mean() < 4


def test_text_to_image_equals_diffusers(tmp_path, pipe):
    folder = factory.save(tmp_path / "base", factory.tiny(in_channels=4))
    stock = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = factory.ddim()
    noise = np.random.default_rng(3).standard_normal((2, 8, 8, 4), np.float32)
    options = dict(
        num_inference_steps=8,
        guidance_scale=4.0,
        latents=channels_first(noise),
        height=16,
        width=16,
        output_type="np",
    )
    theirs = stock(prompt=[INSTRUCTION] * 2, **options).images
    base = ivid2vid_jax.load(folder)
    ours = base.generate(
        INSTRUCTION,
        2,
        EditSettings(steps=8, sampler="ddim", text_scale=4.0, size=16, seed=3).resolve(base.folder),
    )
    assert theirs.std() > 0.05 and np.abs(theirs[0] - theirs[1]).max() > 0.1
    np.testing.assert_allclose(ours / 255.0, theirs, atol=0.0025)
    with pytest.raises(UserError, match="edits clips and draws no images"):
        pipe.generate(INSTRUCTION, 1, EditSettings().resolve(pipe.folder))
