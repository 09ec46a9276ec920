"""The Python interface: what can be given, what comes back."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import ivid2vid_jax
from ivid2vid_jax import assets
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.clip_source import as_array
from ivid2vid_jax.video.read import open_clip
from tests.support.references import torch

OPTIONS = dict(num_inference_steps=1, size=16, progress=False)


@pytest.fixture(scope="module")
def pipe(tiny):
    return ivid2vid_jax.load(tiny)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def test_dir_and_help_show_what_there_is(pipe):
    assert {"EditResult", "Pipeline", "load", "save_video"} <= set(dir(ivid2vid_jax))
    arguments = inspect.signature(pipe.__call__).parameters
    names = ("num_inference_steps", "guidance_scale", "image_guidance_scale", "negative_prompt")
    assert set(names) < set(arguments)
    assert all(name in inspect.getdoc(ivid2vid_jax.Pipeline.__call__) for name in names)
    assert len(repr(pipe)) < 200 and "million parameters" in repr(pipe)


def test_diffusers_names_mean_our_settings(pipe, frames):
    theirs = pipe(
        frames,
        "make it snow",
        guidance_scale=3.0,
        image_guidance_scale=2.0,
        negative_prompt="rain",
        generator=torch.Generator().manual_seed(5),
        **OPTIONS,
    )
    ours = pipe.edit(
        frames,
        "make it snow",
        text_scale=3.0,
        video_scale=2.0,
        negative="rain",
        seed=5,
        steps=1,
        size=16,
    )
    np.testing.assert_array_equal(theirs.frames, ours)
    mixed = pipe(
        frames,
        "make it snow",
        steps=1,
        text_scale=3.0,
        video_scale=2.0,
        negative="rain",
        seed=5,
        size=16,
        progress=False,
    )
    np.testing.assert_array_equal(mixed.frames, ours)


def test_all_kinds_of_clips_are_the_same_clip(frames):
    images = [Image.fromarray(frame) for frame in frames]
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    kinds = [images, list(frames), tensor, tensor.float() / 255, frames / 255, tensor.half() / 255]
    for clip in kinds:
        np.testing.assert_array_equal(as_array(clip), frames)


@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (7, TypeError, "not int"),
        ({"a": 1}, TypeError, "not dict"),
        (np.zeros((2, 4)), UserError, r"got \[2, 4\]"),
        (np.zeros((2, 4, 4, 3), int), UserError, "got int64"),
        (np.full((2, 4, 4, 3), 2.0), UserError, r"in \[0, 1\], got \[2, 2\]"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], UserError, "one size"),
    ],
)
def test_what_is_no_clip_is_named(clip, error, message):
    with pytest.raises(error, match=message):
        as_array(clip)


def test_a_result_has_frames_rate_and_images_and_is_saved(pipe, frames, tmp_path):
    result = pipe(frames, "make it snow", fps=12, **OPTIONS)
    assert repr(result) == "EditResult(3 frames, 12 frames/s)" and len(result) == 3
    np.testing.assert_array_equal(np.asarray(result), result.frames)
    np.testing.assert_array_equal(np.asarray(result.images[1]), result.frames[1])
    path = result.save(tmp_path / "new" / "out")
    np.testing.assert_array_equal([f.pixels for f in open_clip(path).frames()], result.frames)
    with pytest.raises(UserError, match=r"cannot write \.xyz"):
        result.save(tmp_path / "out.xyz")


def test_the_result_of_a_file_keeps_its_rate_and_sound(pipe, skiing, tmp_path):
    result = pipe(skiing, "make it snow", fps=2, **OPTIONS)
    assert result.rate == 2 and "with sound" in repr(result)
    written = open_clip(result.save(tmp_path / "out.mp4"))
    assert written.has_audio and written.rate == 2


def test_a_progress_bar_is_shown_by_default(pipe, capsys):
    pipe(assets.clip(None), "make it snow", num_inference_steps=2, size=16)
    assert "sampling: 100%" in capsys.readouterr().err


def test_misspelt_settings_are_corrected(pipe, frames):
    with pytest.raises(TypeError, match="unknown setting 'guidance_scal'; did you mean"):
        pipe(frames, "make it snow", guidance_scal=3)
    with pytest.raises(UserError, match=r"'dpm\+' is unknown.*did you mean 'dpm\+\+'"):
        pipe(frames, "make it snow", sampler="dpm+")
    with pytest.raises(TypeError, match="a seed or a generator"):
        pipe(frames, "make it snow", seed=1, generator=torch.Generator())


def test_save_video(frames, tmp_path):
    path = ivid2vid_jax.save_video(frames, tmp_path / "frames", fps=5)
    np.testing.assert_array_equal([f.pixels for f in open_clip(path).frames()], frames)
    assert open_clip(ivid2vid_jax.save_video(frames, tmp_path / "a.mp4", fps=5)).rate == Fraction(5)
