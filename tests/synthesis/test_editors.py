"""Editors of the data engine: a tuning step against PyTorch's, clips that know nothing of each other, and what must hold by construction."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import random

from ivid2vid_jax.data import shapes
from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.diffusion.inversion import inversion_steps
from ivid2vid_jax.diffusion.samplers import make_sampler
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.synthesis.editors import (
    EditTask,
    ProgressCounter,
    SharedNoise,
    SharedNoiseConfig,
    TuneAVideo,
    TuneAVideoConfig,
    inversion_schedule,
    sampling_schedule,
    steps_left,
)
from ivid2vid_jax.training.params import flatten, unflatten
from ivid2vid_jax.utils.errors import UserError
from tests.support import factory
from tests.support.devices import environment
from tests.synthesis import test_tune_a_video

RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
TASKS = [
    EditTask(clip, f"the red cat {i}", ("the cat", "red")[: 1 + i % 2], seed=i)
    for i, clip in enumerate(CLIPS)
]
QUICK = TuneAVideoConfig(steps=3, inversion=2, sampling=2, lr=1e-3)


ONE_LEVEL = dict(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random text-to-image folder."""
    return factory.save(
        tmp_path_factory.mktemp("models") / "base", factory.tiny(in_channels=4, **ONE_LEVEL)
    )


@pytest.fixture(scope="module")
def pipe(base):
    return pipeline.load(base, devices=1)


@pytest.fixture(scope="module")
def tuned(pipe):
    return TuneAVideo(pipe, QUICK, devices=1)(TASKS)


def test_steps_of_tuning_are_pytorchs(tmp_path):
    """Gradient, clipping and AdamW, on the original architecture put together from diffusers' layers (tests/synthesis/test_tune_a_video.py)."""
    net = test_tune_a_video.reference().train()
    config = TuneAVideoConfig(lr=1e-3, clip=0.15)
    pipe = pipeline.load(factory.save(tmp_path / "base", factory.tiny(in_channels=4)), devices=1)
    editor = TuneAVideo(pipe, config, devices=1)
    params = pipeline_params(net)
    names = sorted(editor.trained)
    rest = {name: value for name, value in params.items() if name not in editor.trained}
    latents, text = (
        RNG.standard_normal((5, 8, 8, 4)).astype(np.float32),
        RNG.standard_normal((7, 32)).astype(np.float32),
    )
    key, tuned = random.key(3), {name: jnp.asarray(params[name][None]) for name in names}
    state = jax.vmap(editor.optimizer.init)(tuned)

    for name, parameter in net.named_parameters():
        parameter.requires_grad_(
            any(f".{part}." in name for part in ("attn1.to_q", "attn2.to_q", "attn_temp"))
        )
    chosen = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert len(chosen) == len(names)
    adamw, norms = (
        torch.optim.AdamW(chosen.values(), lr=config.lr, weight_decay=config.weight_decay),
        [],
    )
    for number in range(3):
        tuned, state = editor.tune_step(
            rest, tuned, state, latents[None], text[None], key[None], np.int32(number)
        )
        key_t, key_noise = random.split(random.fold_in(key, number))
        t = int(random.randint(key_t, (1,), 0, 1000)[0])
        noise, alpha_bar = (
            np.asarray(random.normal(key_noise, (1, *latents.shape)))[0],
            pipe.schedule.alphas_cumprod[t],
        )
        x_t = np.sqrt(alpha_bar) * latents + np.sqrt(1 - alpha_bar) * noise
        out = net(
            factory.frames_first(np.float32(x_t)[None]),
            torch.full((5,), t),
            torch.from_numpy(text).expand(5, -1, -1),
        ).sample
        adamw.zero_grad()
        torch.nn.functional.mse_loss(out, factory.frames_first(noise[None])).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(chosen.values(), config.clip)))
        adamw.step()
    assert max(norms) > config.clip, f"clipping must act, {norms}"
    theirs = pipeline_params(net)
    for name in names:
        apart = np.abs((np.asarray(tuned[name][0]) - params[name]) - (theirs[name] - params[name]))
        assert np.mean(apart > 0.02 * config.lr) < 2e-3, (
            name,
            apart.max(),
        )  # a gradient near zero takes Adam's sign by rounding


def pipeline_params(net):
    return {name: np.array(value) for name, value in flatten(test_tune_a_video.ours(net)).items()}


def test_tuning_learns_its_clip_and_leaves_the_base_alone(pipe):
    editor = TuneAVideo(
        pipe, TuneAVideoConfig(steps=60, inversion=1, sampling=1, lr=3e-3), devices=1
    )
    before = {name: np.array(value) for name, value in editor.base.items()}
    latents = (
        np.stack([pipe.vae_codec.encode(pipe.params["vae"], iter(TASKS[0].clip))])
        * pipe.folder.vae.scaling_factor
    )
    keys = jnp.stack([random.key(0)])
    tuned, _ = editor.prepare(
        editor.base,
        TASKS[:1],
        latents,
        keys,
        make_sampler("ddim", pipe.schedule, 1),
        0,
        ProgressCounter(None, 0),
    )

    def error(weights):
        t = jnp.asarray([100, 300, 500, 700, 900])
        a = pipe.schedule.alphas_cumprod[np.asarray(t)].astype(np.float32)[
            :, None, None, None, None
        ]
        noise = random.normal(random.key(9), (5, *latents.shape[1:]))
        text = jnp.repeat(pipe.encode_text([TASKS[0].caption]), 5, axis=0)
        x = np.sqrt(a) * latents + np.sqrt(1 - a) * noise
        return float(
            jnp.mean(
                (
                    editor.denoise(
                        unflatten({**editor.base, **weights}), x, t, Condition(text, None)
                    )
                    - noise
                )
                ** 2
            )
        )

    first, last = error(editor.trained), error({name: value[0] for name, value in tuned.items()})
    assert last < 0.9 * first, (first, last)
    assert all(np.array_equal(before[name], value) for name, value in editor.base.items())
    assert all(not np.array_equal(editor.trained[name], tuned[name][0]) for name in tuned)


def test_a_clip_is_edited_the_same_in_any_company(pipe, tuned):
    together = TuneAVideo(pipe, TuneAVideoConfig(**vars(QUICK) | dict(at_once=2)), devices=1)(
        TASKS
    )  # two groups, the second filled up
    for mine, theirs, task in zip(tuned, together, TASKS, strict=True):
        assert len(mine) == len(theirs) == len(task.edited_captions)
        for one, other in zip(mine, theirs, strict=True):
            assert one.shape == task.clip.shape and one.dtype == np.uint8
            assert np.abs(one.astype(int) - other).max() <= 1
    assert np.abs(tuned[1][0].astype(int) - tuned[1][1]).max() > 1, "captions must tell"


def test_equal_frames_under_one_noise_stay_equal(pipe):
    still = np.repeat(CLIPS[0][:1], 5, axis=0)
    config = SharedNoiseConfig(sampling=3, strength=0.7)
    edited = SharedNoise(pipe, config, devices=1)([EditTask(still, "a", ("the red cat",), 0)])[0][0]
    assert np.abs(edited - edited[:1].astype(int)).max() <= 1
    other = SharedNoise(pipe, config, devices=1)([EditTask(CLIPS[0], "a", ("the red cat",), 0)])[0][
        0
    ]
    assert np.abs(other - other[:1].astype(int)).max() > 1


def test_less_strength_keeps_more_of_the_clip(pipe):
    errors = []
    for strength in (0.1, 0.5, 1.0):
        edited = SharedNoise(pipe, SharedNoiseConfig(sampling=10, strength=strength), devices=1)(
            TASKS[:1]
        )[0][0]
        errors.append(np.abs(edited.astype(int) - pipe.reconstruct(TASKS[0].clip)).mean())
    assert errors[0] < errors[1] < errors[2], errors


def test_a_clip_comes_back_from_its_own_noise():
    """By its own caption, on the embedded base, at 25 dB from the clip itself; from noise that all frames share it does not."""
    base, clip = (
        pipeline.load("shapes-base", devices=1),
        shapes.triplet(shapes.sample_spec(5, 0, size=64, frames=4)),
    )
    task = EditTask(clip.source, clip.source_caption, (clip.source_caption,), 0)

    def psnr(**changes):
        [[edited]] = SharedNoise(
            base,
            SharedNoiseConfig(sampling=50, text_scale=1.25, strength=0.9, **changes),
            devices=1,
        )([task])
        return 10 * np.log10(255**2 / np.square(edited.astype(float) - task.clip).mean())

    assert psnr(inversion=50) > 25 > 20 > psnr()


def test_the_prompt_of_inversion_tells(pipe):
    kept = [
        TuneAVideo(pipe, dataclasses.replace(QUICK, inversion_prompt=told), devices=1)(TASKS[:1])[
            0
        ][0]
        for told in ("empty", "caption")
    ]
    assert np.abs(kept[0].astype(int) - kept[1]).max() > 1


def test_random_bias_is_drawn_and_nothing_else(pipe):
    plain, drawn = (
        TuneAVideo(pipe, TuneAVideoConfig(random_bias=each), devices=1).trained
        for each in (False, True)
    )
    changed = {name for name in plain if not np.array_equal(plain[name], drawn[name])}
    assert (
        changed == {name for name in plain if name.endswith("attn_temp/to_out.0/bias")} and changed
    )
    for name in changed:
        assert (
            not plain[name].any() and 0.8 < np.abs(drawn[name]).max() * len(drawn[name]) ** 0.5 <= 1
        )


@pytest.mark.parametrize("inversion", [6, 4, 7])
def test_inversion_ends_where_sampling_begins(pipe, inversion):
    """For every strength, whatever the numbers of steps; with equal numbers the steps are sampling's own."""
    for strength in (0.1, 0.5, 0.8, 1.0):
        config = SharedNoiseConfig(sampling=6, strength=strength, inversion=inversion)
        table, first = sampling_schedule(pipe.schedule, config)
        *_, last = steps = inversion_schedule(pipe.schedule, config)
        for mine, theirs in (
            (last.t, "t"),
            (last.alpha_after, "alpha"),
            (last.sigma_after, "sigma"),
        ):
            assert mine == getattr(table.steps, theirs)[first], (strength, theirs)
        levels = [level for step in steps for level in (step.sigma, step.sigma_after)]
        assert levels == sorted(levels) and levels[1:-1:2] == levels[2::2], (
            "one step begins where the last one ended"
        )
        if inversion == 6:
            assert steps == inversion_steps(pipe.schedule, 6)[: len(steps)] and len(
                steps
            ) == steps_left(config)


def test_a_text_scale_of_one_is_the_caption_alone(pipe):
    """And 0 the empty prompt's: no weight is lost where one of them is zero."""

    def edited(scale, caption="the red cat"):
        [[found]] = SharedNoise(pipe, SharedNoiseConfig(sampling=3, text_scale=scale), devices=1)(
            [EditTask(CLIPS[0], "a", (caption,), 0)]
        )
        return found.astype(int)

    assert (
        np.abs(edited(1.0) - edited(1.0001)).max() <= 1
        and np.abs(edited(0.0) - edited(0.0001)).max() <= 1
    )
    assert np.abs(edited(1.0) - edited(0.0)).max() > 1
    assert np.array_equal(edited(0.0), edited(0.0, ""))


@pytest.mark.parametrize("inversion", [0, 6])
def test_progress_counts_every_step(pipe, inversion):
    told = []
    editor = SharedNoise(
        pipe, SharedNoiseConfig(sampling=4, strength=0.5, inversion=inversion), devices=1
    )
    editor(TASKS, lambda done, total: told.append((done, total)))
    steps = 2 * sum(len(task.edited_captions) for task in TASKS) + inversion // 2 * len(TASKS)
    assert told == [(i, steps) for i in range(1, steps + 1)]


def test_what_cannot_be_edited_is_named(pipe, tiny):
    with pytest.raises(UserError, match="takes 8 channels"):
        SharedNoise(pipeline.load(tiny, devices=1), SharedNoiseConfig())
    with pytest.raises(UserError, match="strength 0"):
        SharedNoise(pipe, SharedNoiseConfig(strength=0.0))
    with pytest.raises(UserError, match="one shape"):
        SharedNoise(pipe, SharedNoiseConfig(), devices=1)(
            [TASKS[0], EditTask(CLIPS[1][:4], "a", ("b",), 0)]
        )
    with pytest.raises(UserError, match="clips of 16x15 pixels: .* takes multiples of 2 alone"):
        SharedNoise(pipe, SharedNoiseConfig(), devices=1)(
            [EditTask(CLIPS[0][:, :15], "a", ("b",), 0)]
        )
    for editor, config, message in (
        (SharedNoise, SharedNoiseConfig(sampling=0), "sampling 0 must be between 1 and 1000"),
        (SharedNoise, SharedNoiseConfig(inversion=1001), "inversion 1001"),
        (TuneAVideo, TuneAVideoConfig(inversion=0), "inversion 0 must be between 1"),
    ):
        with pytest.raises(UserError, match=message):
            editor(pipe, config)


SCRIPT = """
import sys, re
import jax, numpy as np
from jax import random
from ivid2vid_jax.diffusion.samplers import sampler_steps
from ivid2vid_jax.inference.sampling_loop import SamplerState
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.synthesis.editors import TuneAVideo, inversion_schedule, sampling_schedule
from tests.synthesis.test_editors import QUICK, TASKS
assert jax.device_count() == 4
pipe = pipeline.load(sys.argv[1], devices=1)
editor = TuneAVideo(pipe, QUICK)
assert editor.together == 4
found = editor(TASKS)
np.savez(sys.argv[2], *[edit for edits in found for edit in edits])
tuned = {name: np.stack([value] * 4) for name, value in editor.trained.items()}
state = jax.vmap(editor.optimizer.init)(tuned)
latents = np.zeros((4, 5, 8, 8, 4), np.float32)
text = np.zeros((4, 77, 32), np.float32)
tuned, state, x, told, both, keys, run = editor.put((tuned, state, latents, text, np.stack([text] * 2, 1), jax.numpy.stack([random.key(0)] * 4), SamplerState(latents, latents)))
table, first = sampling_schedule(editor.schedule, QUICK)
programs = {
    "tune": editor.tune_step.lower(editor.placed, tuned, state, x, told, keys, np.int32(0)),
    "rise": editor.rise_step.lower(editor.placed, tuned, x, told, jax.device_put(inversion_schedule(editor.schedule, QUICK)[0])),
    "sample": editor.sample_step.lower(editor.placed, tuned, run, both, keys, sampler_steps(table)[first], np.ones(2, np.float32)),
}
for name, program in programs.items():
    text = program.compile().as_text()
    found = set(re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter", text))
    assert "num_partitions=4" in text and not found, (name, found)
    print(name, "step: 4 partitions, no collective")
"""


@pytest.mark.slow
def test_four_devices_edit_four_clips_and_send_nothing(base, tuned, tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path / "out.npz")]
    done = subprocess.run(
        words, env=environment(4), cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert done.stdout.count("no collective") == 3
    theirs = np.load(tmp_path / "out.npz")
    for one, name in zip([edit for edits in tuned for edit in edits], theirs.files, strict=True):
        assert np.abs(one.astype(int) - theirs[name]).max() <= 1
