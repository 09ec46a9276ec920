"""The whole edit: parity with diffusers, determinism, windows, no transfers, no recompilation."""

import jax
import numpy as np
import pytest

import ivid2vid_jax
from ivid2vid_jax.diffusion.samplers import frame_noise, make_sampler
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.inference.sampling_loop import blend_weights
from ivid2vid_jax.weights.tokenizer import load_tokenizer
from tests.support import factory
from tests.support.references import diffusers, torch

RNG = np.random.default_rng(0)
INSTRUCTION = "make the red car blue"


@pytest.fixture(scope="module")
def pipe(tiny):
    """One pipeline for all tests; most clips have 4 frames, so that they share its programs."""
    return ivid2vid_jax.load(tiny)


@pytest.fixture(scope="module")
def stock_pipe(tiny):
    """Diffusers' own pipeline with the same weights."""
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        tiny, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip(frames, height=16, width=16):
    return RNG.integers(0, 256, (frames, height, width, 3), np.uint8)


def channels_first(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def edit_noise(seed, steps, frames, shape):
    """The noise of an edit for torch, each [T, C, h, w]: initial noise, then that of each step."""
    keys = jax.random.split(jax.random.key(seed), steps + 1)
    return [channels_first(np.asarray(frame_noise(key, np.arange(frames), shape))) for key in keys]


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
@pytest.mark.parametrize(
    ("negative", "text_scale", "video_scale"), [("", 7.5, 1.5), ("snow", 4.0, 2.0)]
)
def test_equals_diffusers_instruct_pix2pix(
    tiny, pipe, stock_pipe, monkeypatch, sampler, negative, text_scale, video_scale
):
    """Pixels in, pixels out, three branches, one frame, the same noise."""
    frame, noise = clip(1), iter(edit_noise(seed=7, steps=10, frames=1, shape=(8, 8, 4)))
    initial_noise = next(noise)
    if sampler == "euler_ancestral":
        stock_pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_pretrained(
            tiny, subfolder="scheduler"
        )
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
            lambda *args, **options: next(noise),
        )
    else:
        stock_pipe.scheduler = factory.ddim()
    expected = stock_pipe(
        prompt=INSTRUCTION,
        image=channels_first(frame).float() / 255,
        negative_prompt=negative or None,
        num_inference_steps=10,
        guidance_scale=text_scale,
        image_guidance_scale=video_scale,
        latents=initial_noise,
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
    actual = pipe.edit(frame, INSTRUCTION, **options)
    assert 0.02 < expected.mean() < 0.98 and expected.std() > 0.05
    # rounding to uint8 is an error of 0.002
    np.testing.assert_allclose(actual / 255.0, expected, atol=0.0025)


def test_a_seed_repeats_and_another_differs(pipe):
    video, options = clip(4), dict(steps=2, size=16)
    first = pipe.edit(video, INSTRUCTION, seed=5, **options)
    assert first.shape == video.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, pipe.edit(video, INSTRUCTION, seed=5, **options))
    assert (first != pipe.edit(video, INSTRUCTION, seed=6, **options)).mean() > 0.5
    assert (first != pipe.edit(video, "make it snow", seed=5, **options)).mean() > 0.1
    assert (first != pipe.edit(video, INSTRUCTION, seed=5, negative="car", **options)).mean() > 0.01


def random_latents(frames):
    return RNG.standard_normal((frames, 8, 8, 4)).astype(np.float32)


def start_loop(pipe, source, windows, sampler="euler_ancestral", steps=4, seed=1):
    """Starts the sampling loop."""
    settings = EditSettings(steps=steps, sampler=sampler).resolve(pipe.folder)
    table = make_sampler(sampler, pipe.schedule, steps)
    guidance = pipe.guidance(INSTRUCTION, settings)
    return pipe.sampling_loop(pipe.params["unet"], source, guidance, table, seed, windows)


def run_loop(pipe, source, windows, **options):
    """Runs the sampling loop; returns its latents."""
    *progress, latents = start_loop(pipe, source, windows, **options)
    assert len(progress) == 4 * len(windows)
    return latents


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpm++"])
def test_windowed_sampling_equals_full_clip_sampling(pipe, name):
    """This net works frame by frame, so windows change rounding only."""
    source = random_latents(10)
    expected = run_loop(pipe, source, [slice(0, 10)], sampler=name)
    for windows in ([slice(0, 6), slice(4, 10)], [slice(0, 6), slice(2, 8), slice(4, 10)]):
        np.testing.assert_allclose(
            run_loop(pipe, source, windows, sampler=name),
            expected,
            atol=2e-3 * np.abs(expected).max(),
        )


def test_both_loops_agree_on_one_window(pipe, monkeypatch):
    source = random_latents(6)
    expected = run_loop(pipe, source, [slice(0, 6)])
    monkeypatch.setattr(pipe.sampling_loop, "sample_one_window", pipe.sampling_loop.sample_windows)
    np.testing.assert_allclose(
        run_loop(pipe, source, [slice(0, 6)]), expected, atol=1e-3 * np.abs(expected).max()
    )


def test_blend_weights_sum_to_one():
    windows, total = [slice(0, 8), slice(6, 14), slice(9, 17)], np.zeros(17)
    for weight, window in zip(blend_weights(windows, 17), windows, strict=True):
        assert weight.min() > 0
        total[window] += weight
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_loop_transfers_nothing_and_dispatches_once_per_step(pipe, monkeypatch):
    source = random_latents(4)
    outputs = start_loop(pipe, source, [slice(0, 4)], sampler="ddim", steps=5, seed=0)
    next(outputs)
    calls, full_step = [], pipe.sampling_loop.full_step

    def counted_step(*args):
        calls.append(1)
        return full_step(*args)

    monkeypatch.setattr(pipe.sampling_loop, "full_step", counted_step)
    with jax.transfer_guard("disallow"):
        for _ in range(4):
            assert next(outputs) is None
    assert len(calls) == 4
    assert next(outputs).shape == source.shape


def test_nothing_is_compiled_twice(pipe):
    def cache_sizes():
        codec = pipe.vae_codec
        programs = (
            pipe.sampling_loop.full_step,
            codec._encode,
            codec._decode,
            pipe._encode_text,
        )
        return [program._cache_size() for program in programs]

    pipe.edit(clip(4), INSTRUCTION, steps=2, size=16)
    before = cache_sizes()
    pipe.edit(
        clip(4), "another instruction", steps=3, size=16, sampler="dpm++", text_scale=3.0, seed=9
    )
    assert cache_sizes() == before


def test_guidance_acts_in_its_interval_only(pipe):
    video, options = clip(4), dict(steps=4, size=16, text_scale=5.0, video_scale=2.0)
    unguided = pipe.edit(video, INSTRUCTION, **options | dict(text_scale=1.0, video_scale=1.0))
    np.testing.assert_array_equal(
        pipe.edit(video, INSTRUCTION, guide_from=1.0, **options), unguided
    )
    guided = pipe.edit(video, INSTRUCTION, **options)
    half_guided = pipe.edit(video, INSTRUCTION, guide_to=0.5, **options)
    assert (guided != unguided).mean() > 0.1
    assert (half_guided != unguided).mean() > 0.1
    assert (half_guided != guided).mean() > 0.1
    settings = EditSettings(guide_from=0.25, guide_to=0.75, **options).resolve(pipe.folder)
    branches = [len(guidance.weights) for guidance in pipe.guidance(INSTRUCTION, settings)]
    assert branches == [1, 3, 3, 1]


@pytest.mark.parametrize(("sampler", "frames"), [("ddim", 16), ("euler_ancestral", 3)])
def test_shared_noise_gives_equal_frames_of_a_still_clip(pipe, sampler, frames):
    """In one window and in several, with initial noise only (ddim) and with noise in every step.

    This net has no temporal layers.
    """
    still = np.broadcast_to(clip(1), (4, 16, 16, 3))
    options = dict(steps=2, size=16, sampler=sampler, frames=frames)

    def max_difference(shared):
        edited = pipe.edit(still, INSTRUCTION, shared_noise=shared, **options).astype(int)
        return np.abs(edited - edited[:1]).max()

    assert max_difference(1.0) <= 1
    assert max_difference(0.0) > 30


def test_folder_defaults_precede_the_packages(pipe, monkeypatch):
    settings = EditSettings().resolve(pipe.folder)
    assert settings.text_scale == 7.5 and settings.video_scale == 1.5
    assert (settings.sampler, settings.size, settings.frames) == ("ddim", 16, 16)
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


def test_invalid_edits_are_rejected(pipe, tmp_path):
    with pytest.raises(UserError, match="the instruction is empty"):
        pipe.edit(clip(2), "  ", steps=1, size=16)
    with pytest.raises(UserError, match=r"with T >= 1, got \[2, 4\]"):
        pipe.edit(np.zeros((2, 4)), INSTRUCTION)
    with pytest.raises(TypeError, match="unknown setting 'strength'"):
        pipe.edit(clip(2), INSTRUCTION, strength=0.5)
    base = ivid2vid_jax.load(
        factory.save_pipeline(tmp_path / "base", factory.tiny_parts(in_channels=4))
    )
    message = "takes 4 latent channels and no source clip; an editor takes 8"
    with pytest.raises(UserError, match=message):
        base.edit(clip(2), INSTRUCTION, steps=1, size=16)


def test_truncation_of_a_long_instruction_is_logged(pipe, caplog):
    long = "make it snow " * 700
    with caplog.at_level("WARNING"):
        truncated = pipe.encode_text([long.strip()])
    assert "is cut at 77; what is not read" in caplog.text
    np.testing.assert_array_equal(truncated, pipe.encode_text([long + "and much more"]))


def test_padding_token_is_the_folders(tmp_path):
    """Stable Diffusion 2.x pads with "!", 1.x with the end token."""
    for pad in ("!", "<|endoftext|>"):
        factory.write_tokenizer(tmp_path / pad[0], pad)
        tokenizer = load_tokenizer(tmp_path / pad[0])
        ids = tokenizer(["a"], padding="max_length", max_length=77)["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == pad


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(tiny, pipe):
    video, options = clip(4), dict(steps=3, size=16, text_scale=1.0, video_scale=1.0)
    expected = pipe.edit(video, INSTRUCTION, **options)
    actual = ivid2vid_jax.load(tiny, dtype="bfloat16").edit(video, INSTRUCTION, **options)
    assert 0 < np.abs(expected.astype(float) - actual).mean() < 4


@pytest.mark.slow
def test_text_to_image_equals_diffusers(tmp_path, pipe):
    folder = factory.save_pipeline(tmp_path / "base", factory.tiny_parts(in_channels=4))
    stock_pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock_pipe.set_progress_bar_config(disable=True)
    stock_pipe.scheduler = factory.ddim()
    noise = np.random.default_rng(3).standard_normal((2, 8, 8, 4), np.float32)
    options = dict(
        num_inference_steps=8,
        guidance_scale=4.0,
        latents=channels_first(noise),
        height=16,
        width=16,
        output_type="np",
    )
    expected = stock_pipe(prompt=[INSTRUCTION] * 2, **options).images
    base = ivid2vid_jax.load(folder)
    settings = EditSettings(steps=8, sampler="ddim", text_scale=4.0, size=16, seed=3)
    actual = base.generate(INSTRUCTION, 2, settings.resolve(base.folder))
    assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(actual / 255.0, expected, atol=0.0025)
    with pytest.raises(UserError, match="edits clips and draws no images"):
        pipe.generate(INSTRUCTION, 1, EditSettings().resolve(pipe.folder))
