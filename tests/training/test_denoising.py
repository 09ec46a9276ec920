"""The denoising objective: random draws per clip, inputs of the U-Net, losses by hand.

A function stands in for the U-Net, which would take minutes to compile.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.models import AutoencoderKL, CLIPTextModel
from ivid2vid_jax.training.config import AutoencoderLossConfig, CondDropoutConfig
from ivid2vid_jax.training.objectives import Autoencoding, condition_dropout
from ivid2vid_jax.training.step import clip_keys
from tests.support.references import torch
from tests.support.tiny_objective import KEY, SCALING, cached_batch, fake_unet

RNG = np.random.default_rng(0)
N = 20_000  # clips of the statistical tests


@pytest.fixture(scope="module")
def encoded(tiny_objective):
    """The batch encoded by the networks: source and target (mean, std), texts, the empty text."""
    vae = AutoencoderKL(tiny_objective.folder.vae)
    text_encoder = CLIPTextModel(tiny_objective.folder.text_encoder)

    @jax.jit
    def encode(params, source, edited, tokens):
        posteriors = [
            vae.apply(
                {"params": params["vae"]},
                jnp.concatenate(list(clip)) / 127.5 - 1,
                method=vae.encode,
            )
            for clip in (source, edited)
        ]
        posteriors = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), posteriors)
        return *posteriors, text_encoder.apply({"params": params["text_encoder"]}, tokens)

    batch = tiny_objective.batch
    source, target, texts = jax.device_get(
        encode(
            tiny_objective.params,
            batch["source"].astype(np.float32),
            batch["edited"].astype(np.float32),
            np.stack([*batch["tokens"], tiny_objective.null]),
        )
    )
    return source, target, texts[:8], texts[8]


def correlation(a, b):
    """Absolute correlation of two samples, in standard deviations of that of independent ones."""
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size)


def within_four_sigma(hits, rate):
    return abs(hits.sum() - rate * N) < 4 * np.sqrt(N * rate * (1 - rate))


# ---- random draws per clip


@pytest.fixture(scope="module")
def draws(tiny_objective):
    """U-Net inputs of 20,000 clips with the keys of a step, for target latents of std 0 and 1."""
    keys = clip_keys(KEY, 3, np.arange(N, dtype=np.uint32))
    null = tiny_objective.null[:2]
    unit_std = np.ones((N, 2, 1, 1, 4), np.float32)
    return [
        tiny_objective.losses_and_inputs(batch, keys, null=null)[1]
        for batch in (cached_batch(N), cached_batch(N, target_std=unit_std))
    ]


def test_one_draw_decides_about_dropout():
    r = jnp.asarray([0, 0.0499, 0.0501, 0.0999, 0.1001, 0.1499, 0.1501, 0.999])
    text, video = condition_dropout(r, CondDropoutConfig())
    assert text.tolist() == [True] * 4 + [False] * 4
    assert video.tolist() == [False, False, True, True, True, True, False, False]
    text, video = condition_dropout(
        random.uniform(random.key(1), (N,)), CondDropoutConfig(text=0.1, both=0.02, video=0.3)
    )
    for hits, rate in ((text & ~video, 0.1), (text & video, 0.02), (video & ~text, 0.3)):
        assert within_four_sigma(np.asarray(hits), rate)


def test_dropout_rates_with_the_keys_of_a_step(draws):
    inputs = draws[0]
    text, video = inputs["text"][:, 0, 0] != 7, (inputs["source"] == 0).all((1, 2, 3, 4))
    for hits in (text & ~video, text & video, video & ~text):
        assert within_four_sigma(hits, 0.05)
    assert (inputs["source"][~video] == 1).all() and (inputs["text"][~text] == 7).all()


def test_one_uniform_timestep_per_clip(draws):
    t = draws[0]["t"]
    assert t.shape == (N,) and t.dtype == np.int32 and t.min() == 0 and t.max() == 999
    counts = np.bincount(t // 50, minlength=20)
    chi_squared = ((counts - N / 20) ** 2 / (N / 20)).sum()
    assert chi_squared < 45, "19 degrees of freedom: a probability of 1 in 1,000"


def test_noise_is_independent_of_everything(draws, tiny_objective):
    """Of frames, clips, timesteps, dropout and the posterior sample: fails for a reused key."""
    plain, sampled = draws
    alpha_bar = tiny_objective.objective().alphas_cumprod[plain["t"]].reshape(-1, 1, 1, 1, 1)
    noise = plain["x_t"] / np.sqrt(1 - alpha_bar)
    assert noise.std() == pytest.approx(1, abs=0.01) and abs(noise.mean()) < 0.01
    assert correlation(noise[:, 0], noise[:, 1]) < 4 and correlation(noise[:-1], noise[1:]) < 4
    visible = np.flatnonzero(alpha_bar.ravel() > 0.1)
    difference = (sampled["x_t"] - plain["x_t"])[visible]
    sample = difference / np.sqrt(alpha_bar[visible]) / SCALING
    assert sample.std() == pytest.approx(1, abs=0.01)
    assert correlation(sample, noise[visible]) < 4
    assert correlation(sample[:, 0], sample[:, 1]) < 4
    dropout = (plain["text"][:, 0, 0] != 7).astype(float)
    first = noise[:, 0, 0, 0, 0]
    assert correlation(first, plain["t"]) < 4
    assert correlation(first, dropout) < 4
    assert correlation(dropout, plain["t"]) < 4


def test_draws_depend_only_on_serial_number_and_step(tiny_objective):
    serial = np.arange(100, 116, dtype=np.uint32)
    means = RNG.standard_normal((2, 16, 2, 1, 1, 4)).astype(np.float32)
    batch = cached_batch(
        16, source_mean=means[0], target_mean=means[1], target_std=abs(means[0]), serial=serial
    )

    def run(rows, step=3):
        part = {name: x[rows] for name, x in batch.items()}
        losses, inputs = tiny_objective.losses_and_inputs(
            part,
            clip_keys(KEY, step, part["serial"]),
            null=tiny_objective.null[:2],
            drop=(0.3, 0.3, 0.3),
        )
        return inputs | {"total": losses.total}

    order = RNG.permutation(16)
    expected, permuted, half = run(np.arange(16)), run(order), run(np.arange(8, 16))
    close = dict(rtol=1e-6, atol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(permuted[name], value[order], **close, err_msg=name)
        np.testing.assert_allclose(half[name], value[8:], **close, err_msg=name)
    later = run(np.arange(16), step=4)
    assert (later["t"] != expected["t"]).sum() > 12
    assert correlation(later["x_t"], expected["x_t"]) < 6


# ---- inputs of the U-Net, and losses


def test_source_is_the_unscaled_mode_and_target_a_scaled_sample(tiny_objective, encoded):
    (mean, _), (target_mean, target_std), texts, _ = encoded
    keys = clip_keys(KEY, 0, tiny_objective.batch["serial"])
    no_noise = np.ones(1000)  # alpha_bar = 1: x_t is x0
    _, inputs = tiny_objective.losses_and_inputs(
        tiny_objective.batch, keys, drop=(0.0, 0.0, 0.0), alpha_bar=no_noise
    )
    np.testing.assert_allclose(inputs["source"], mean, atol=2e-5 * abs(mean).max())
    np.testing.assert_allclose(inputs["text"], texts, atol=2e-5 * abs(texts).max())
    z = (inputs["x_t"] / SCALING - target_mean) / target_std
    assert z.std() == pytest.approx(1, abs=4 / np.sqrt(2 * z.size))
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert correlation(z[:, 0], z[:, 1]) < 4


@pytest.mark.parametrize(
    ("drop", "drops_text", "drops_video"),
    [((1.0, 0.0, 0.0), True, False), ((0.0, 1.0, 0.0), True, True), ((0.0, 0.0, 1.0), False, True)],
)
def test_a_dropped_text_is_the_empty_text_and_a_dropped_clip_is_zero(
    tiny_objective, encoded, drop, drops_text, drops_video
):
    (mean, _), _, texts, null = encoded
    keys = clip_keys(KEY, 0, tiny_objective.batch["serial"])
    _, inputs = tiny_objective.losses_and_inputs(tiny_objective.batch, keys, drop=drop)
    expected_text = np.broadcast_to(null, texts.shape) if drops_text else texts
    np.testing.assert_allclose(inputs["text"], expected_text, atol=2e-5 * abs(texts).max())
    if drops_video:
        assert not inputs["source"].any()
    else:
        np.testing.assert_allclose(inputs["source"], mean, atol=2e-5 * abs(mean).max())
    assert np.ptp(texts, axis=0).max() > 0.1 and abs(texts - null).max() > 0.1, (
        "the texts must differ, else this test proves nothing"
    )


def stable_diffusion_alpha_bar(t):
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[t]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_equals_a_hand_computation_from_the_unets_inputs(tiny_objective, kind):
    """smooth_x0 at weight 0.3, min-SNR 5; the other modes: tests/diffusion/test_losses.py."""
    scheduler = {"prediction_type": kind, "rescale_betas_zero_snr": False}
    folder = dataclasses.replace(
        tiny_objective.folder, scheduler=tiny_objective.folder.scheduler | scheduler
    )
    objective = dataclasses.replace(tiny_objective, folder=folder)
    means = RNG.standard_normal((2, 6, 3, 4, 4, 4)).astype(np.float32)
    t = np.array([1, 200, 400, 600, 800, 950], np.int32)
    batch = cached_batch(6, source_mean=means[0], target_mean=means[1], target_std=0 * means[1])
    losses, inputs = objective.losses_and_inputs(
        batch,
        clip_keys(KEY, 0, batch["serial"]),
        train=False,
        t=t,
        loss=LossConfig(frame_difference="smooth_x0", frame_weight=0.3, snr_gamma=5.0),
        null=tiny_objective.null[:2],
    )
    np.testing.assert_array_equal(losses.t, t)
    predictions = np.asarray(
        fake_unet(inputs["x_t"], inputs["t"], Condition(inputs["text"], inputs["source"]))
    )
    for i, a in enumerate(stable_diffusion_alpha_bar(t)):
        x0, x_t, p, snr = SCALING * means[1][i], inputs["x_t"][i], predictions[i], a / (1 - a)
        eps = (x_t - np.sqrt(a) * x0) / np.sqrt(1 - a)
        if kind == "epsilon":
            target, x0_hat = eps, (x_t - np.sqrt(1 - a) * p) / np.sqrt(a)
        else:
            target = np.sqrt(a) * eps - np.sqrt(1 - a) * x0
            x0_hat = np.sqrt(a) * x_t - np.sqrt(1 - a) * p
        expected = {
            "noise_loss": np.mean((p - target) ** 2),
            "frame_loss": a * np.mean(np.diff(x0_hat, axis=0) ** 2),
        }
        for name, value in expected.items():
            assert losses.parts[name][i] == pytest.approx(value, rel=2e-4), name
        weight = min(snr, 5) / (snr if kind == "epsilon" else snr + 1)
        total = weight * (expected["noise_loss"] + 0.3 * expected["frame_loss"])
        assert losses.total[i] == pytest.approx(total, rel=2e-4)


def test_cached_latents_give_the_loss_of_the_pixels(tiny_objective, encoded):
    source, target, texts, _ = encoded
    cache = {
        "source_mean": source.mean,
        "target_mean": target.mean,
        "target_std": target.std,
        "text": texts,
        "serial": tiny_objective.batch["serial"],
    }
    keys = clip_keys(KEY, 7, tiny_objective.batch["serial"])

    def total(batch):
        return tiny_objective.losses_and_inputs(batch, keys, drop=(0.2, 0.2, 0.2))[0].total

    pixels = total(tiny_objective.batch)
    np.testing.assert_allclose(total(cache), pixels, rtol=2e-5)
    assert abs(total(cache | {"target_std": 2 * target.std}) / pixels - 1).max() > 1e-3


def test_nothing_is_dropped_outside_of_training(tiny_objective):
    batch = cached_batch(8)
    _, inputs = tiny_objective.losses_and_inputs(
        batch,
        clip_keys(KEY, 0, batch["serial"]),
        drop=(0.0, 1.0, 0.0),
        train=False,
        null=tiny_objective.null[:2],
    )
    assert (inputs["source"] == 1).all() and (inputs["text"] == 7).all()


def test_text_to_image_has_no_source(tiny_objective):
    pixels, tokens = tiny_objective.batch["edited"][:, :1], tiny_objective.batch["tokens"]
    objective, calls = tiny_objective.objective(task="text_to_image"), []

    def unet(params, x_t, t, cond, rngs):
        calls.append((x_t.shape, cond.source))
        return x_t

    objective.denoise = unet
    params, keys = tiny_objective.params | {"unet": {}}, clip_keys(KEY, 0, np.arange(8))
    batch = {"clip": pixels, "tokens": tokens}
    jax.eval_shape(lambda: objective.losses(params, batch, keys, True))
    assert calls == [((8, 1, 8, 8, 4), None)]


def test_temporal_dropout_acts_only_in_training(tiny_objective):
    unet = dataclasses.replace(tiny_objective.folder.unet, temporal_dropout=0.1)
    folder = dataclasses.replace(tiny_objective.folder, unet=unet)
    objective = dataclasses.replace(tiny_objective, folder=folder).objective(
        null=tiny_objective.null[:2]
    )
    calls = []

    def recording(name):
        def unet(params, x_t, t, cond, rngs):
            calls.append((name, rngs))
            return x_t

        return unet

    for name in ("denoise", "denoise_train"):
        setattr(objective, name, recording(name))
    params, keys = tiny_objective.params | {"unet": {}}, clip_keys(KEY, 0, jnp.arange(4))
    for train in (True, False):
        jax.eval_shape(lambda train=train: objective.losses(params, cached_batch(4), keys, train))
    assert [name for name, _ in calls] == ["denoise_train", "denoise"]
    assert "dropout" in calls[0][1]


def test_the_autoencoders_loss_equals_a_hand_computation(tiny_objective, encoded):
    _, (mean, std), _, _ = encoded
    vae, clip = AutoencoderKL(tiny_objective.folder.vae), tiny_objective.batch["edited"]
    keys = clip_keys(KEY, 0, tiny_objective.batch["serial"])
    config = AutoencoderLossConfig(kl=0.01, gradient=0.5)
    objective = Autoencoding(tiny_objective.folder, config, jnp.float32)
    z = np.stack([random.normal(key, mean.shape[1:]) for key in keys])

    @jax.jit
    def run(params, latents):
        losses = [objective.losses(params, {"clip": clip}, keys, train) for train in (False, True)]
        decoded = [
            vae.apply({"params": params["vae"]}, x.reshape(16, 8, 8, 4), method=vae.decode)
            for x in latents
        ]
        return losses, decoded

    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(
        normal(torch.tensor(mean), torch.tensor(std)), normal(0.0, 1.0)
    ).numpy()
    results = jax.device_get(run(tiny_objective.params, (mean, mean + std * z)))
    for losses, decoded in zip(*results, strict=True):
        error = decoded.astype(np.float64).reshape(clip.shape) - (clip / 127.5 - 1)
        steps = (np.diff(error, axis=2), np.diff(error, axis=3))
        expected = {
            "l1": abs(error).mean((1, 2, 3, 4)),
            "edges": sum(abs(step).mean((1, 2, 3, 4)) for step in steps),
            "kl": divergence.sum((1, 2, 3, 4)) / (2 * 16 * 16 * 3),
            "mse": (error**2).mean((1, 2, 3, 4)),
            "latent_square": (mean**2).mean((1, 2, 3, 4)),
        }
        assert losses.parts.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(losses.parts[name], value, rtol=2e-4, err_msg=name)
        total = expected["l1"] + 0.01 * expected["kl"] + 0.5 * expected["edges"]
        np.testing.assert_allclose(losses.total, total, rtol=2e-4)
