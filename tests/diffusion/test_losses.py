"""The losses against hand computations in plain numpy, diffusers' schedulers and this package's own samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from jax.test_util import check_grads

from ivid2vid_jax.diffusion.losses import (
    LossConfig,
    add_noise,
    frame_difference,
    min_snr_weight,
    mse_per_clip,
    prediction_target,
    timestep_weight,
)
from ivid2vid_jax.diffusion.samplers import make_sampler, predicted_x0, sampler_steps
from ivid2vid_jax.diffusion.schedule import NoiseSchedule

RNG = np.random.default_rng(0)
SHAPE = (4, 3, 2, 5, 4)  # [B, T, h, w, C]
X0, NOISE, PREDICTION = RNG.standard_normal((3, *SHAPE))
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ZERO_SNR = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
TIMES = np.array([3, 300, 700, 990])
ALPHA_BAR = NoiseSchedule().alphas_cumprod[TIMES]

MODES = ("match", "match_x0", "smooth_x0")
KINDS = ("epsilon", "v_prediction")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# ---- by hand: one clip after the other, clean latents written out


def noisy(x0, noise, alpha_bar):
    return np.stack(
        [np.sqrt(a) * x + np.sqrt(1 - a) * n for x, n, a in zip(x0, noise, alpha_bar, strict=True)]
    )


def wanted(x0, noise, alpha_bar, kind):
    if kind == "epsilon":
        return noise
    return np.stack(
        [np.sqrt(a) * n - np.sqrt(1 - a) * x for x, n, a in zip(x0, noise, alpha_bar, strict=True)]
    )


def clean(x_t, prediction, a, kind):
    """x0 of one clip: solved from x_t = sqrt(a) x0 + sqrt(1 - a) eps, and v = sqrt(a) eps - sqrt(1 - a) x0."""
    if kind == "epsilon":
        return (x_t - np.sqrt(1 - a) * prediction) / np.sqrt(a)
    return np.sqrt(a) * x_t - np.sqrt(1 - a) * prediction


def steps(clip):
    """Frame i + 1 minus frame i."""
    return np.stack([clip[i + 1] - clip[i] for i in range(len(clip) - 1)])


def by_hand(mode, kind, x_t, prediction, y, alpha_bar, clip=np.inf):
    out = []
    for x, p, true, a in zip(x_t, prediction, y, alpha_bar, strict=True):
        if mode == "match":
            out.append(np.mean((steps(p) - steps(true)) ** 2))
        elif mode == "match_x0":
            found, known = (steps(clean(x, each, a, kind)) for each in (p, true))
            most = (
                clip * a / (1 - a) if kind == "epsilon" else 1.0
            )  # the weight of eps differences is 1/SNR, at most `clip`
            out.append(np.mean((found - known) ** 2) * min(1.0, most))
        else:
            out.append(a * np.mean(steps(clean(x, p, a, kind)) ** 2))
    return np.array(out)


def ours(mode, kind, x_t, prediction, y, alpha_bar, **options):
    return frame_difference(
        *map(jnp.asarray, (x_t, prediction, y, alpha_bar)),
        kind,
        LossConfig(frame_difference=mode, **options),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_frame_difference_is_what_a_hand_computes(mode, kind):
    x_t, y = noisy(X0, NOISE, ALPHA_BAR), wanted(X0, NOISE, ALPHA_BAR, kind)
    found = ours(mode, kind, x_t, PREDICTION, y, ALPHA_BAR, snr_clip=1e9)
    assert found.shape == (4,)
    np.testing.assert_allclose(
        found, by_hand(mode, kind, x_t, PREDICTION, y, ALPHA_BAR), rtol=1e-10
    )


def test_weight_of_match_x0_is_bounded_for_epsilon_and_not_for_v():
    inverse_snr = (1 - ALPHA_BAR) / ALPHA_BAR
    assert (inverse_snr < 5).sum() == 2 and (inverse_snr > 5).sum() == 2, (
        "the clip must bite for some clips only"
    )
    for kind in KINDS:
        x_t, y = noisy(X0, NOISE, ALPHA_BAR), wanted(X0, NOISE, ALPHA_BAR, kind)
        found = ours("match_x0", kind, x_t, PREDICTION, y, ALPHA_BAR, snr_clip=5.0)
        np.testing.assert_allclose(
            found, by_hand("match_x0", kind, x_t, PREDICTION, y, ALPHA_BAR, clip=5.0), rtol=1e-10
        )
        free = by_hand("match_x0", kind, x_t, PREDICTION, y, ALPHA_BAR)
        np.testing.assert_array_equal(
            np.asarray(found) < 0.99 * free, inverse_snr > 5 if kind == "epsilon" else [False] * 4
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_finite_differences(mode, kind):
    x_t, y = noisy(X0, NOISE, ALPHA_BAR), wanted(X0, NOISE, ALPHA_BAR, kind)
    check_grads(
        lambda x, p: ours(mode, kind, x, p, y, ALPHA_BAR),
        (jnp.asarray(x_t), jnp.asarray(PREDICTION)),
        order=1,
        modes=["rev"],
        rtol=1e-6,
        atol=1e-6,
    )
    slope = jax.grad(lambda p: ours(mode, kind, x_t, p, y, ALPHA_BAR).sum())(
        jnp.asarray(PREDICTION)
    )
    nudge, h = (
        RNG.standard_normal(SHAPE),
        1e-5,
    )  # by hand too: the reference above shares no line with the loss
    there, here = (
        by_hand(mode, kind, x_t, PREDICTION + sign * h * nudge, y, ALPHA_BAR, clip=5.0).sum()
        for sign in (1, -1)
    )
    assert float((slope * nudge).sum()) == pytest.approx((there - here) / (2 * h), rel=1e-6)


# ---- properties


def test_match_is_twice_the_noise_loss_for_frame_independent_errors_and_nothing_for_constant_ones():
    shape = (8, 16, 8, 8, 4)
    y, error = RNG.standard_normal((2, *shape))
    ratio = (
        ours("match", "epsilon", y, y + error, y, np.full(8, 0.5)).mean()
        / mse_per_clip(jnp.asarray(error)).mean()
    )
    assert float(ratio) == pytest.approx(2.0, rel=0.02)
    same = y + error[:, :1]
    assert float(ours("match", "epsilon", y, same, y, np.full(8, 0.5)).max()) < 1e-25


@pytest.mark.parametrize("mode", (*MODES, "none"))
def test_one_frame_has_no_difference(mode):
    x_t, p, y = (each[:, :1] for each in (X0, PREDICTION, NOISE))
    value, slope = jax.value_and_grad(
        lambda p: ours(mode, "v_prediction", x_t, p, y, ALPHA_BAR).sum()
    )(jnp.asarray(p))
    assert ours(mode, "v_prediction", x_t, p, y, ALPHA_BAR).shape == (4,)
    assert float(value) == 0.0 and not np.asarray(slope).any()


def test_none_is_no_loss():
    assert not np.asarray(ours("none", "epsilon", X0, PREDICTION, NOISE, ALPHA_BAR)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_of_smooth_x0_is_a_frozen_clip_whatever_the_noise(kind):
    x_t, frozen = noisy(X0, NOISE, ALPHA_BAR), np.repeat(X0[:, :1], 3, axis=1)
    a = ALPHA_BAR.reshape(-1, 1, 1, 1, 1)
    eps = (x_t - np.sqrt(a) * frozen) / np.sqrt(
        1 - a
    )  # the prediction under which the clean clip stands still
    prediction = eps if kind == "epsilon" else np.sqrt(a) * eps - np.sqrt(1 - a) * frozen
    y = wanted(X0, NOISE, ALPHA_BAR, kind)
    assert float(ours("smooth_x0", kind, x_t, prediction, y, ALPHA_BAR).max()) < 1e-20
    assert float(ours("match", kind, x_t, prediction, y, ALPHA_BAR).min()) > 1e-3
    assert float(ours("smooth_x0", kind, x_t, y, y, ALPHA_BAR).min()) > 1e-3, "the truth moves"


@pytest.mark.parametrize("mode", MODES)
def test_pure_noise_gives_finite_values_and_gradients(mode):
    """Zero-terminal SNR: the last timestep holds no signal at all, and v prediction can say so."""
    alpha_bar = ZERO_SNR.alphas_cumprod[[0, 500, 998, 999]]
    assert alpha_bar[-1] == 0.0
    x_t, y = (
        np.asarray(f(X0, NOISE, jnp.asarray(alpha_bar), *kind))
        for f, kind in ((add_noise, ()), (prediction_target, ("v_prediction",)))
    )
    np.testing.assert_array_equal(x_t[-1], NOISE[-1])
    np.testing.assert_array_equal(y[-1], -X0[-1])
    value = ours(mode, "v_prediction", x_t, PREDICTION, y, alpha_bar)
    np.testing.assert_allclose(
        value, by_hand(mode, "v_prediction", x_t, PREDICTION, y, alpha_bar), rtol=1e-10, atol=1e-12
    )
    slope = jax.grad(lambda p: ours(mode, "v_prediction", x_t, p, y, alpha_bar).sum())(
        jnp.asarray(PREDICTION)
    )
    assert np.isfinite(slope).all() and np.asarray(slope)[0].any()
    # epsilon cannot, but must not break a step either
    assert np.isfinite(ours(mode, "epsilon", x_t, PREDICTION, NOISE, alpha_bar)).all()


# ---- weights


@pytest.mark.parametrize("gamma", [5.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights(kind, gamma):
    alpha_bar = NoiseSchedule().alphas_cumprod
    snr = alpha_bar / (1 - alpha_bar)
    formula = np.minimum(snr, gamma) / (snr if kind == "epsilon" else snr + 1)
    np.testing.assert_allclose(
        min_snr_weight(jnp.asarray(alpha_bar), gamma, kind), formula, rtol=1e-9
    )
    assert 0 < (snr > gamma).mean() < 1, "both sides of the minimum must be met"


def test_min_snr_weight_without_signal_and_without_gamma():
    zero = jnp.zeros(1)
    assert float(min_snr_weight(zero, 5.0, "epsilon")[0]) == 1.0, "the limit of min(SNR, g) / SNR"
    assert float(min_snr_weight(zero, 5.0, "v_prediction")[0]) == 0.0
    for kind in KINDS:
        np.testing.assert_array_equal(min_snr_weight(jnp.asarray(ALPHA_BAR), 0.0, kind), np.ones(4))


@pytest.mark.parametrize("kind", KINDS)
def test_clean_weight_makes_an_error_one_of_the_clean_latents(kind):
    weights = timestep_weight(
        jnp.asarray(ALPHA_BAR), kind, LossConfig(x0_weighting=True, snr_clip=1e9)
    )
    for i, a in enumerate(ALPHA_BAR):
        apart = clean(X0[i], PREDICTION[i], a, kind) - clean(X0[i], NOISE[i], a, kind)
        assert float(weights[i]) * np.mean((PREDICTION[i] - NOISE[i]) ** 2) == pytest.approx(
            np.mean(apart**2), rel=1e-9
        )


def test_clean_weight_is_bounded_for_epsilon_and_keeps_the_last_step_for_v():
    weights = timestep_weight(
        jnp.asarray(ALPHA_BAR), "epsilon", LossConfig(x0_weighting=True, snr_clip=0.5)
    )
    assert 0 < float((weights == 0.5).mean()) < 1
    assert (
        float(timestep_weight(jnp.zeros(1), "v_prediction", LossConfig(x0_weighting=True))[0])
        == 1.0
    )


# ---- the same world as the samplers' and diffusers'


@pytest.mark.parametrize(
    "schedule",
    [NoiseSchedule(), NoiseSchedule(prediction_type="v_prediction"), ZERO_SNR],
    ids=("epsilon", "v", "zero_snr"),
)
def test_the_samplers_find_the_clean_latents_in_what_is_trained(schedule):
    rows = sampler_steps(make_sampler("ddim", schedule, 1000))
    for i, t in enumerate(TIMES):
        row = next(row for row in rows if int(row.t) == t)
        alpha_bar = jnp.asarray(schedule.alphas_cumprod[[t]])
        x0, noise = (jnp.asarray(each[i : i + 1]) for each in (X0, NOISE))
        x_t, y = (
            add_noise(x0, noise, alpha_bar),
            prediction_target(x0, noise, alpha_bar, schedule.prediction_type),
        )
        np.testing.assert_allclose(
            predicted_x0(x_t, y, row, schedule.prediction_type), x0, atol=2e-5
        )  # the table is float32


@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_velocity_are_those_of_diffusers(zero_snr):
    reference = DDPMScheduler(
        **SD, clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr
    )
    schedule = NoiseSchedule.from_json(dict(reference.config))
    x0, noise, t = torch.from_numpy(X0), torch.from_numpy(NOISE), torch.from_numpy(TIMES)
    alpha_bar = jnp.asarray(schedule.alphas_cumprod[TIMES])
    np.testing.assert_allclose(
        add_noise(X0, NOISE, alpha_bar), reference.add_noise(x0, noise, t), atol=3e-6
    )  # theirs is a float32 table
    np.testing.assert_allclose(
        prediction_target(X0, NOISE, alpha_bar, "v_prediction"),
        reference.get_velocity(x0, noise, t),
        atol=3e-6,
    )
    assert prediction_target(X0, NOISE, alpha_bar, "epsilon") is NOISE


def test_every_loss_is_one_number_a_clip():
    np.testing.assert_allclose(
        mse_per_clip(jnp.asarray(X0)), [np.mean(clip**2) for clip in X0], rtol=1e-12
    )
