"""Editors: a tuning step against PyTorch's, independence of clips, inversion, guidance, errors."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from ivid2vid_jax.data import shapes
from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.diffusion.inversion import inversion_steps
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.synthesis.clip_editor import ClipBatch, EditTask, ProgressCounter
from ivid2vid_jax.synthesis.edit_schedule import (
    inversion_schedule,
    sampling_schedule,
    sampling_steps,
)
from ivid2vid_jax.synthesis.editors import (
    SharedNoise,
    SharedNoiseConfig,
    TuneAVideo,
    TuneAVideoConfig,
)
from ivid2vid_jax.training.params import flatten, unflatten
from tests.support import factory
from tests.support.devices import device_env
from tests.support.references import torch
from tests.synthesis import test_tune_a_video

RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
TASKS = [
    EditTask(clip, f"the red cat {i}", ("the cat", "red")[: 1 + i % 2], seed=i)
    for i, clip in enumerate(CLIPS)
]
QUICK = TuneAVideoConfig(steps=3, inversion=2, sampling=2, lr=1e-3)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random text-to-image folder."""
    return factory.save_pipeline(
        tmp_path_factory.mktemp("models") / "base",
        factory.tiny_parts(in_channels=4, **factory.ONE_LEVEL),
    )


@pytest.fixture(scope="module")
def pipe(base):
    return pipeline.load(base, devices=1)


@pytest.fixture(scope="module")
def tuned_edits(pipe):
    """The edits of TASKS by Tune-A-Video, one clip at a time."""
    return TuneAVideo(pipe, QUICK, devices=1)(TASKS)


def share_noise(pipe, task, **options):
    """The only edit of a task by SharedNoise, as int."""
    [[edit]] = SharedNoise(pipe, SharedNoiseConfig(**options), devices=1)([task])
    return edit.astype(int)


def max_difference(a, b):
    """In grey levels."""
    return np.abs(a.astype(int) - b).max()


def test_tuning_steps_equal_pytorchs(pipe):
    """Gradient, clipping and AdamW, on the original architecture of test_tune_a_video.py."""
    net = test_tune_a_video.reference(**factory.ONE_LEVEL).train()
    config = TuneAVideoConfig(lr=1e-3, clip=0.07)
    editor = TuneAVideo(pipe, config, devices=1)
    initial = flat_params(net)
    names = sorted(editor.trained)
    frozen = {name: value for name, value in initial.items() if name not in editor.trained}
    latents = RNG.standard_normal((5, 8, 8, 4)).astype(np.float32)
    text = RNG.standard_normal((7, 32)).astype(np.float32)
    key, tuned = random.key(3), {name: jnp.asarray(initial[name][None]) for name in names}
    state = jax.vmap(editor.optimizer.init)(tuned)

    trained = freeze_all_but_tuned(net)
    assert len(trained) == len(names)
    adamw = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    norms = []
    for number in range(3):
        tuned, state = editor.jit_tune_step(
            frozen, tuned, state, latents[None], text[None], key[None], np.int32(number)
        )
        key_t, key_noise = random.split(random.fold_in(key, number))
        t = int(random.randint(key_t, (1,), 0, 1000)[0])
        noise = np.asarray(random.normal(key_noise, (1, *latents.shape)))[0]
        alpha_bar = pipe.schedule.alphas_cumprod[t]
        x_t = np.sqrt(alpha_bar) * latents + np.sqrt(1 - alpha_bar) * noise
        prediction = net(
            factory.to_torch_frames(np.float32(x_t)[None]),
            torch.full((5,), t),
            torch.from_numpy(text).expand(5, -1, -1),
        ).sample
        adamw.zero_grad()
        torch.nn.functional.mse_loss(prediction, factory.to_torch_frames(noise[None])).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.clip)))
        adamw.step()
    assert max(norms) > config.clip, f"clipping must act, {norms}"
    expected = flat_params(net)
    for name in names:
        change = np.asarray(tuned[name][0]) - initial[name]
        error = np.abs(change - (expected[name] - initial[name]))
        # where a gradient is near zero, rounding decides the sign of Adam's step
        assert np.mean(error > 0.02 * config.lr) < 2e-3, (name, error.max())


def freeze_all_but_tuned(net):
    """The parameters of a PyTorch U-Net that Tune-A-Video trains; the others get no gradient."""
    parts = (".attn1.to_q.", ".attn2.to_q.", ".attn_temp.")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def flat_params(net):
    config = factory.UNET_TINY | factory.ONE_LEVEL | test_tune_a_video.TUNE_A_VIDEO
    params = flatten(test_tune_a_video.jax_params(net, UNetConfig.from_json(config)))
    return {name: np.array(value) for name, value in params.items()}


@pytest.mark.slow
def test_tuning_learns_its_clip_and_leaves_the_base_unchanged(pipe):
    config = TuneAVideoConfig(steps=60, inversion=1, sampling=1, lr=3e-3)
    editor = TuneAVideo(pipe, config, devices=1)
    initial = {name: np.array(value) for name, value in editor.base.items()}
    latents = editor.encode(TASKS[:1])
    batch = ClipBatch(TASKS[:1], latents, jnp.stack([random.key(0)]))
    tuned, _ = editor.prepare(batch, ProgressCounter(None, 0))

    def error(weights):
        t = jnp.asarray([100, 300, 500, 700, 900])
        alpha_bar = pipe.schedule.alphas_cumprod[np.asarray(t)].astype(np.float32)
        alpha_bar = alpha_bar[:, None, None, None, None]
        noise = random.normal(random.key(9), (5, *latents.shape[1:]))
        text = jnp.repeat(pipe.encode_text([TASKS[0].caption]), 5, axis=0)
        x = np.sqrt(alpha_bar) * latents + np.sqrt(1 - alpha_bar) * noise
        params = unflatten({**editor.base, **weights})
        prediction = editor.denoise(params, x, t, Condition(text, None))
        return float(jnp.mean((prediction - noise) ** 2))

    before = error(editor.trained)
    after = error({name: value[0] for name, value in tuned.items()})
    assert after < 0.9 * before, (before, after)
    assert all(np.array_equal(initial[name], value) for name, value in editor.base.items())
    assert all(not np.array_equal(editor.trained[name], tuned[name][0]) for name in tuned)


@pytest.mark.slow
def test_an_edit_does_not_depend_on_the_other_clips(pipe, tuned_edits):
    # two groups, the second one filled up
    config = dataclasses.replace(QUICK, at_once=2)
    edits_in_pairs = TuneAVideo(pipe, config, devices=1)(TASKS)
    for edits, others, task in zip(tuned_edits, edits_in_pairs, TASKS, strict=True):
        assert len(edits) == len(others) == len(task.edited_captions)
        for edit, other in zip(edits, others, strict=True):
            assert edit.shape == task.clip.shape
            assert edit.dtype == np.uint8
            assert max_difference(edit, other) <= 1
    assert max_difference(*tuned_edits[1]) > 1, "the caption must matter"


def test_equal_frames_under_shared_noise_stay_equal(pipe):
    options = dict(sampling=3, strength=0.7)
    still = np.repeat(CLIPS[0][:1], 5, axis=0)
    edit = share_noise(pipe, EditTask(still, "a", ("the red cat",), 0), **options)
    assert max_difference(edit, edit[:1]) <= 1
    edit = share_noise(pipe, EditTask(CLIPS[0], "a", ("the red cat",), 0), **options)
    assert max_difference(edit, edit[:1]) > 1


def test_less_strength_keeps_more_of_the_clip(pipe):
    source = pipe.reconstruct(TASKS[0].clip)
    weak, medium, strong = (
        np.abs(share_noise(pipe, TASKS[0], sampling=10, strength=strength) - source).mean()
        for strength in (0.1, 0.5, 1.0)
    )
    assert weak < medium < strong


@pytest.mark.slow
def test_inverted_noise_reproduces_the_clip():
    """With its own caption and the embedded base: PSNR above 25 dB; shared noise fails to."""
    base = pipeline.load("shapes-base", devices=1)
    triplet = shapes.triplet(shapes.sample_spec(5, 0, size=64, frames=4))
    task = EditTask(triplet.source, triplet.source_caption, (triplet.source_caption,), 0)

    def psnr(inversion):
        edit = share_noise(
            base, task, sampling=50, text_scale=1.25, strength=0.9, inversion=inversion
        )
        return 10 * np.log10(255**2 / np.square(edit.astype(float) - task.clip).mean())

    assert psnr(inversion=50) > 25 > 20 > psnr(inversion=0)


@pytest.mark.slow
def test_the_prompt_of_inversion_matters(pipe):
    empty, caption = (
        TuneAVideo(pipe, dataclasses.replace(QUICK, inversion_prompt=prompt), devices=1)(TASKS[:1])
        for prompt in ("empty", "caption")
    )
    assert max_difference(empty[0][0], caption[0][0]) > 1


def test_random_bias_changes_the_output_biases_only(pipe):
    zero, random_ = (
        TuneAVideo(pipe, TuneAVideoConfig(random_bias=random_bias), devices=1).trained
        for random_bias in (False, True)
    )
    changed = {name for name in zero if not np.array_equal(zero[name], random_[name])}
    assert changed
    assert changed == {name for name in zero if name.endswith("attn_temp/to_out.0/bias")}
    for name in changed:
        assert not zero[name].any()
        assert 0.8 < np.abs(random_[name]).max() * len(random_[name]) ** 0.5 <= 1


@pytest.mark.parametrize("inversion", [6, 4, 7])
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.8, 1.0])
def test_inversion_ends_where_sampling_begins(pipe, inversion, strength):
    """For any numbers of steps; with equal numbers the steps are sampling's own."""
    config = SharedNoiseConfig(sampling=6, strength=strength, inversion=inversion)
    table, first = sampling_schedule(pipe.schedule, config)
    steps = inversion_schedule(pipe.schedule, config)
    assert steps[-1].t == table.steps.t[first]
    assert steps[-1].alpha_after == table.steps.alpha[first]
    assert steps[-1].sigma_after == table.steps.sigma[first]
    assert all(step.sigma <= step.sigma_after for step in steps)
    for step, following in itertools.pairwise(steps):
        assert step.sigma_after == following.sigma
    if inversion == 6:
        assert len(steps) == sampling_steps(config)
        assert steps == inversion_steps(pipe.schedule, 6)[: len(steps)]


def test_text_scale_1_is_the_caption_and_0_the_empty_prompt(pipe):
    """No branch is lost where the weight of one is zero."""

    def edit(text_scale, caption="the red cat"):
        task = EditTask(CLIPS[0], "a", (caption,), 0)
        return share_noise(pipe, task, sampling=3, text_scale=text_scale)

    at_one, at_zero = edit(1.0), edit(0.0)
    assert max_difference(at_one, edit(1.0001)) <= 1
    assert max_difference(at_zero, edit(0.0001)) <= 1
    assert max_difference(at_one, at_zero) > 1
    assert np.array_equal(at_zero, edit(0.0, ""))


@pytest.mark.parametrize("inversion", [0, 6])
def test_progress_counts_every_step(pipe, inversion):
    calls = []
    config = SharedNoiseConfig(sampling=4, strength=0.5, inversion=inversion)
    editor = SharedNoise(pipe, config, devices=1)
    editor(TASKS, lambda done, total: calls.append((done, total)))
    steps = 2 * sum(len(task.edited_captions) for task in TASKS) + inversion // 2 * len(TASKS)
    assert calls == [(i, steps) for i in range(1, steps + 1)]


def test_a_base_that_is_no_text_to_image_model_is_refused(tiny):
    with pytest.raises(UserError, match="takes 8 channels"):
        SharedNoise(pipeline.load(tiny, devices=1), SharedNoiseConfig())


def test_clips_of_wrong_shapes_are_refused(pipe):
    editor = SharedNoise(pipe, SharedNoiseConfig(), devices=1)
    with pytest.raises(UserError, match="same shape"):
        editor([TASKS[0], EditTask(CLIPS[1][:4], "a", ("b",), 0)])
    with pytest.raises(UserError, match=r"clips of 16x15 pixels: .* takes multiples of 2 alone"):
        editor([EditTask(CLIPS[0][:, :15], "a", ("b",), 0)])


@pytest.mark.parametrize(
    ("editor", "config", "message"),
    [
        (SharedNoise, SharedNoiseConfig(strength=0.0), "strength 0"),
        (SharedNoise, SharedNoiseConfig(sampling=0), "sampling 0 must be between 1 and 1000"),
        (SharedNoise, SharedNoiseConfig(inversion=1001), "inversion 1001"),
        (TuneAVideo, TuneAVideoConfig(inversion=0), "inversion 0 must be between 1"),
    ],
)
def test_settings_out_of_range_are_refused(pipe, editor, config, message):
    with pytest.raises(UserError, match=message):
        editor(pipe, config)


# argv: base, output file. Edits on 4 devices, and checks the compiled programs for communication.
SCRIPT = """
import sys, re
import jax, numpy as np
from jax import random
from ivid2vid_jax.diffusion.samplers import sampler_steps
from ivid2vid_jax.inference.sampling_loop import SamplerState
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.synthesis.edit_schedule import inversion_schedule, sampling_schedule
from ivid2vid_jax.synthesis.editors import TuneAVideo
from tests.synthesis.test_editors import QUICK, TASKS
assert jax.device_count() == 4
editor = TuneAVideo(pipeline.load(sys.argv[1], devices=1), QUICK)
assert editor.clips_per_call == 4
np.savez(sys.argv[2], *[edit for edits in editor(TASKS) for edit in edits])
tuned = {name: np.stack([value] * 4) for name, value in editor.trained.items()}
optimizer_state = jax.vmap(editor.optimizer.init)(tuned)
latents = np.zeros((4, 5, 8, 8, 4), np.float32)
text = np.zeros((4, 77, 32), np.float32)
keys = jax.numpy.stack([random.key(0)] * 4)
tuned, optimizer_state, x, text, both, keys, state = editor.put(
    (tuned, optimizer_state, latents, text, np.stack([text] * 2, 1), keys,
     SamplerState(latents, latents)))
table, first = sampling_schedule(editor.schedule, QUICK)
inversion_step = jax.device_put(inversion_schedule(editor.schedule, QUICK)[0])
step, weights = sampler_steps(table)[first], np.ones(2, np.float32)
base = editor.base_on_devices
programs = {
    "tune": editor.jit_tune_step.lower(base, tuned, optimizer_state, x, text, keys, np.int32(0)),
    "invert": editor.jit_inversion_step.lower(base, tuned, x, text, inversion_step),
    "sample": editor.jit_sample_step.lower(base, tuned, state, both, keys, step, weights),
}
collectives = ("all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast"
               "|reduce-scatter")
for name, program in programs.items():
    text = program.compile().as_text()
    found = set(re.findall(collectives, text))
    assert "num_partitions=4" in text and not found, (name, found)
    print(name, "step: 4 partitions, no collective")
"""


@pytest.mark.slow
def test_four_devices_edit_four_clips_without_communication(base, tuned_edits, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path / "out.npz")]
    root = Path(__file__).parents[2]
    process = subprocess.run(command, env=device_env(4), cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    print(process.stdout)
    assert process.stdout.count("no collective") == 3
    arrays = np.load(tmp_path / "out.npz")
    for edit, name in zip(itertools.chain(*tuned_edits), arrays.files, strict=True):
        assert max_difference(edit, arrays[name]) <= 1
