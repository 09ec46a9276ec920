"""The losses against plain numpy, diffusers' schedulers and this package's own samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
from tests.support.references import diffusers, torch

RNG = np.random.default_rng(0)
SHAPE = (4, 3, 2, 5, 4)  # [B, T, h, w, C]
X0, NOISE, PREDICTION = RNG.standard_normal((3, *SHAPE))
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ZERO_SNR = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
TIMESTEPS = np.array([3, 300, 700, 990])
ALPHA_BAR = NoiseSchedule().alphas_cumprod[TIMESTEPS]

MODES = ("match", "match_x0", "smooth_x0")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# ---- A reference that shares no line with the losses: one clip at a time, in numpy.


def noisy_reference(x0, noise, alpha_bar):
    return np.stack(
        [np.sqrt(a) * x + np.sqrt(1 - a) * n for x, n, a in zip(x0, noise, alpha_bar, strict=True)]
    )


def target_reference(x0, noise, alpha_bar, prediction_type):
    if prediction_type == "epsilon":
        return noise
    return np.stack(
        [np.sqrt(a) * n - np.sqrt(1 - a) * x for x, n, a in zip(x0, noise, alpha_bar, strict=True)]
    )


def clean_latents(x_t, prediction, a, prediction_type):
    """x_0 of a clip: x_t = sqrt(a) x_0 + sqrt(1-a) eps, v = sqrt(a) eps - sqrt(1-a) x_0."""
    if prediction_type == "epsilon":
        return (x_t - np.sqrt(1 - a) * prediction) / np.sqrt(a)
    return np.sqrt(a) * x_t - np.sqrt(1 - a) * prediction


def frame_steps(clip):
    """Frame i + 1 minus frame i."""
    return np.stack([clip[i + 1] - clip[i] for i in range(len(clip) - 1)])


def reference_loss(mode, prediction_type, x_t, prediction, target, alpha_bar, clip=np.inf):
    losses = []
    for x, p, y, a in zip(x_t, prediction, target, alpha_bar, strict=True):
        if mode == "match":
            losses.append(np.mean((frame_steps(p) - frame_steps(y)) ** 2))
        elif mode == "match_x0":
            predicted, true = (
                frame_steps(clean_latents(x, output, a, prediction_type)) for output in (p, y)
            )
            # The weight of eps differences is 1/SNR, at most `clip`.
            limit = clip * a / (1 - a) if prediction_type == "epsilon" else 1.0
            losses.append(np.mean((predicted - true) ** 2) * min(1.0, limit))
        else:
            steps = frame_steps(clean_latents(x, p, a, prediction_type))
            losses.append(a * np.mean(steps**2))
    return np.array(losses)


def actual_loss(mode, prediction_type, x_t, prediction, target, alpha_bar, **options):
    arrays = map(jnp.asarray, (x_t, prediction, target, alpha_bar))
    return frame_difference(*arrays, prediction_type, LossConfig(frame_difference=mode, **options))


def training_pair(prediction_type):
    """(x_t, target) of the clips above."""
    target = target_reference(X0, NOISE, ALPHA_BAR, prediction_type)
    return noisy_reference(X0, NOISE, ALPHA_BAR), target


# ---- The inter-frames consistency loss


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("mode", MODES)
def test_frame_difference_equals_the_reference(mode, prediction_type):
    x_t, y = training_pair(prediction_type)
    actual = actual_loss(mode, prediction_type, x_t, PREDICTION, y, ALPHA_BAR, snr_clip=1e9)
    expected = reference_loss(mode, prediction_type, x_t, PREDICTION, y, ALPHA_BAR)
    assert actual.shape == (4,)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_weight_of_match_x0_is_clipped_for_epsilon_only():
    inverse_snr = (1 - ALPHA_BAR) / ALPHA_BAR
    assert (inverse_snr < 5).sum() == 2 and (inverse_snr > 5).sum() == 2, (
        "some clips must be clipped and some not"
    )
    for prediction_type in PREDICTION_TYPES:
        x_t, y = training_pair(prediction_type)
        args = ("match_x0", prediction_type, x_t, PREDICTION, y, ALPHA_BAR)
        actual = actual_loss(*args, snr_clip=5.0)
        np.testing.assert_allclose(actual, reference_loss(*args, clip=5.0), rtol=1e-10)
        np.testing.assert_array_equal(
            np.asarray(actual) < 0.99 * reference_loss(*args),
            inverse_snr > 5 if prediction_type == "epsilon" else [False] * 4,
        )


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_equal_finite_differences(mode, prediction_type):
    x_t, y = training_pair(prediction_type)

    def loss(x_t, prediction):
        return actual_loss(mode, prediction_type, x_t, prediction, y, ALPHA_BAR)

    prediction = jnp.asarray(PREDICTION)
    check_grads(loss, (jnp.asarray(x_t), prediction), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda p: loss(x_t, p).sum())(prediction)
    direction, h = RNG.standard_normal(SHAPE), 1e-5
    plus, minus = (
        reference_loss(
            mode, prediction_type, x_t, PREDICTION + shift * direction, y, ALPHA_BAR, clip=5.0
        ).sum()
        for shift in (h, -h)
    )
    expected = (plus - minus) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)


def test_match_is_twice_the_noise_loss_for_independent_errors_and_zero_for_constant_ones():
    shape, alpha_bar = (8, 16, 8, 8, 4), np.full(8, 0.5)
    y, error = RNG.standard_normal((2, *shape))
    match = actual_loss("match", "epsilon", y, y + error, y, alpha_bar).mean()
    noise_loss = mse_per_clip(jnp.asarray(error)).mean()
    assert float(match / noise_loss) == pytest.approx(2.0, rel=0.02)
    constant_error = y + error[:, :1]
    assert float(actual_loss("match", "epsilon", y, constant_error, y, alpha_bar).max()) < 1e-25


@pytest.mark.parametrize("mode", (*MODES, "none"))
def test_one_frame_has_no_difference(mode):
    x_t, p, y = (clips[:, :1] for clips in (X0, PREDICTION, NOISE))

    def loss(p):
        return actual_loss(mode, "v_prediction", x_t, p, y, ALPHA_BAR)

    value, gradient = jax.value_and_grad(lambda p: loss(p).sum())(jnp.asarray(p))
    assert loss(p).shape == (4,)
    assert float(value) == 0.0 and not np.asarray(gradient).any()


def test_none_is_no_loss():
    assert not np.asarray(actual_loss("none", "epsilon", X0, PREDICTION, NOISE, ALPHA_BAR)).any()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_frozen_clip_minimises_smooth_x0(prediction_type):
    (x_t, y), frozen = training_pair(prediction_type), np.repeat(X0[:, :1], 3, axis=1)
    a = ALPHA_BAR.reshape(-1, 1, 1, 1, 1)
    # The prediction whose clean latents are the frozen clip.
    eps = (x_t - np.sqrt(a) * frozen) / np.sqrt(1 - a)
    prediction = eps
    if prediction_type == "v_prediction":
        prediction = np.sqrt(a) * eps - np.sqrt(1 - a) * frozen

    def loss(mode, p):
        return actual_loss(mode, prediction_type, x_t, p, y, ALPHA_BAR)

    assert float(loss("smooth_x0", prediction).max()) < 1e-20
    assert float(loss("match", prediction).min()) > 1e-3
    assert float(loss("smooth_x0", y).min()) > 1e-3, "the true clip moves"


@pytest.mark.parametrize("mode", MODES)
def test_pure_noise_gives_finite_values_and_gradients(mode):
    """With zero-terminal SNR the last timestep holds no signal."""
    alpha_bar = ZERO_SNR.alphas_cumprod[[0, 500, 998, 999]]
    assert alpha_bar[-1] == 0.0
    x_t = np.asarray(add_noise(X0, NOISE, jnp.asarray(alpha_bar)))
    y = np.asarray(prediction_target(X0, NOISE, jnp.asarray(alpha_bar), "v_prediction"))
    np.testing.assert_array_equal(x_t[-1], NOISE[-1])
    np.testing.assert_array_equal(y[-1], -X0[-1])

    args = (mode, "v_prediction", x_t, PREDICTION, y, alpha_bar)
    np.testing.assert_allclose(actual_loss(*args), reference_loss(*args), rtol=1e-10, atol=1e-12)
    gradient = jax.grad(lambda p: actual_loss(mode, "v_prediction", x_t, p, y, alpha_bar).sum())(
        jnp.asarray(PREDICTION)
    )
    assert np.isfinite(gradient).all() and np.asarray(gradient)[0].any()
    # Epsilon prediction is not defined at SNR 0, but must not give NaNs either.
    assert np.isfinite(actual_loss(mode, "epsilon", x_t, PREDICTION, NOISE, alpha_bar)).all()


# ---- Weights of timesteps


@pytest.mark.parametrize("gamma", [5.0, 0.7])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights(prediction_type, gamma):
    alpha_bar = NoiseSchedule().alphas_cumprod
    snr = alpha_bar / (1 - alpha_bar)
    expected = np.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    actual = min_snr_weight(jnp.asarray(alpha_bar), gamma, prediction_type)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    assert 0 < (snr > gamma).mean() < 1, "both sides of the minimum must occur"


def test_min_snr_weight_without_signal_and_without_gamma():
    zero = jnp.zeros(1)
    assert float(min_snr_weight(zero, 5.0, "epsilon")[0]) == 1.0, "the limit of min(SNR, g) / SNR"
    assert float(min_snr_weight(zero, 5.0, "v_prediction")[0]) == 0.0
    for prediction_type in PREDICTION_TYPES:
        np.testing.assert_array_equal(
            min_snr_weight(jnp.asarray(ALPHA_BAR), 0.0, prediction_type), np.ones(4)
        )


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x0_weighting_gives_the_error_of_the_clean_latents(prediction_type):
    config = LossConfig(x0_weighting=True, snr_clip=1e9)
    weights = timestep_weight(jnp.asarray(ALPHA_BAR), prediction_type, config)
    for i, a in enumerate(ALPHA_BAR):
        predicted, true = (
            clean_latents(X0[i], output[i], a, prediction_type) for output in (PREDICTION, NOISE)
        )
        actual = float(weights[i]) * np.mean((PREDICTION[i] - NOISE[i]) ** 2)
        assert actual == pytest.approx(np.mean((predicted - true) ** 2), rel=1e-9)


def test_x0_weighting_is_clipped_for_epsilon_and_is_1_without_signal_for_v():
    clipped = LossConfig(x0_weighting=True, snr_clip=0.5)
    weights = timestep_weight(jnp.asarray(ALPHA_BAR), "epsilon", clipped)
    assert 0 < float((weights == 0.5).mean()) < 1
    at_zero_snr = timestep_weight(jnp.zeros(1), "v_prediction", LossConfig(x0_weighting=True))
    assert float(at_zero_snr[0]) == 1.0


# ---- Consistency with the samplers and with diffusers


@pytest.mark.parametrize(
    "schedule",
    [NoiseSchedule(), NoiseSchedule(prediction_type="v_prediction"), ZERO_SNR],
    ids=("epsilon", "v", "zero_snr"),
)
def test_samplers_recover_the_clean_latents_from_the_training_target(schedule):
    steps = sampler_steps(make_sampler("ddim", schedule, 1000))
    for i, t in enumerate(TIMESTEPS):
        step = next(step for step in steps if int(step.t) == t)
        alpha_bar = jnp.asarray(schedule.alphas_cumprod[[t]])
        x0, noise = jnp.asarray(X0[i : i + 1]), jnp.asarray(NOISE[i : i + 1])
        x_t = add_noise(x0, noise, alpha_bar)
        y = prediction_target(x0, noise, alpha_bar, schedule.prediction_type)
        actual = predicted_x0(x_t, y, step, schedule.prediction_type)
        np.testing.assert_allclose(actual, x0, atol=2e-5)  # the table is float32


@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_velocity_equal_diffusers(zero_snr):
    reference = diffusers.DDPMScheduler(
        **SD, clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr
    )
    schedule = NoiseSchedule.from_json(dict(reference.config))
    x0, noise, t = torch.from_numpy(X0), torch.from_numpy(NOISE), torch.from_numpy(TIMESTEPS)
    alpha_bar = jnp.asarray(schedule.alphas_cumprod[TIMESTEPS])
    # The tolerance is that of diffusers' float32 table.
    np.testing.assert_allclose(
        add_noise(X0, NOISE, alpha_bar), reference.add_noise(x0, noise, t), atol=3e-6
    )
    np.testing.assert_allclose(
        prediction_target(X0, NOISE, alpha_bar, "v_prediction"),
        reference.get_velocity(x0, noise, t),
        atol=3e-6,
    )
    assert prediction_target(X0, NOISE, alpha_bar, "epsilon") is NOISE


def test_mse_per_clip_is_one_mean_per_clip():
    expected = [np.mean(clip**2) for clip in X0]
    np.testing.assert_allclose(mse_per_clip(jnp.asarray(X0)), expected, rtol=1e-12)
