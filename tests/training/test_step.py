"""What is drawn for a clip and what becomes of it; the optimiser step against torch and by hand; what is trained and what is frozen.

The net is a stand-in wherever the net does not matter: compiling the real one takes minutes on a busy machine (`-m slow` does it).
"""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax import random

from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.inference.pipeline import load_tokenizer
from ivid2vid_jax.models import AutoencoderKL, CLIPTextModel
from ivid2vid_jax.training import init_state
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import CondDropoutConfig, OptimConfig
from ivid2vid_jax.training.loop import Tokenizer
from ivid2vid_jax.training.objectives import Autoencoding, Losses, condition_dropout, make_objective
from ivid2vid_jax.training.params import flatten, trainable, unflatten
from ivid2vid_jax.training.step import (
    clip_keys,
    ema_decay,
    learning_rate,
    make_optimizer,
    new_state,
    train_step,
)
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import param_shapes
from tests.support.tiny_run import tiny

RNG = np.random.default_rng(0)
SCALING = (
    0.37  # of the tiny autoencoder's latents: a factor that is forgotten, or taken twice, shows
)
N = 20_000
KEY = random.key_data(random.key(5))


def drawn(shapes: dict) -> dict:
    """Values for parameters by name, none of them zero: the zero projections of temporal layers would hide what is behind them."""

    def draw(name, shape):
        noise = RNG.standard_normal(shape).astype(np.float32)
        return (
            1 + 0.1 * noise
            if name.endswith("scale")
            else 0.1 * noise
            if len(shape) == 1
            else noise / np.sqrt(np.prod(shape[:-1]))
        )

    return {name: jnp.asarray(draw(name, leaf.shape)) for name, leaf in shapes.items()}


@dataclasses.dataclass
class World:
    """A tiny config, its nets with random weights (the U-Net apart), and the batch of pixels they are fed."""

    config: object
    folder: object
    params: dict
    null: np.ndarray
    batch: dict

    def objective(self, null=None, **changes):
        config = dataclasses.replace(tiny(self.config.output, **changes), net=self.config.net)
        return make_objective(config, self.folder, self.null if null is None else null, jnp.float32)

    @functools.cached_property
    def program(self):
        """Compiled once for each shape of batch: the table of alpha_bar and the chances of dropout are arguments."""

        def run(params, batch, keys, null, alpha_bar, drop, t, train, loss):
            seen = {}

            def net(params, x_t, t, cond, rngs):
                seen.update(x_t=x_t, t=t, text=cond.text, source=cond.source)
                return stand_in(x_t, t, cond)

            made = self.objective(null, loss=loss, drop=CondDropoutConfig(*drop))
            made.denoise = made.denoise_train = net
            made.alphas_cumprod = alpha_bar
            return made.losses(params, batch, keys, train, t), seen

        return jax.jit(run, static_argnames=("train", "loss"))

    def recorded(
        self,
        batch,
        keys,
        null=None,
        alpha_bar=None,
        drop=(0.05, 0.05, 0.05),
        t=None,
        train=True,
        loss=LossConfig(),
    ):
        """(losses, what the net was told), with a stand-in for the net that depends on all of it."""
        table = self.objective().alphas_cumprod if alpha_bar is None else alpha_bar
        null = self.null if null is None else null
        return jax.device_get(
            self.program(
                self.params | {"unet": {}},
                batch,
                keys,
                null,
                table,
                drop,
                t,
                train=train,
                loss=loss,
            )
        )


def stand_in(x_t, t, cond):
    told = jnp.sin(t) + cond.text.mean((1, 2))
    return (
        0.3 * x_t
        + (0.0 if cond.source is None else 0.2 * cond.source)
        + 0.1 * told.reshape(-1, 1, 1, 1, 1)
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    config = tiny(run)
    unet = dataclasses.replace(
        config.net.unet,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
    )
    net = dataclasses.replace(
        config.net, unet=unet, vae=dataclasses.replace(config.net.vae, scaling_factor=SCALING)
    )
    config = dataclasses.replace(config, net=net)
    folder, _ = init_state.plan_networks(config, lambda: ["make the red circle blue"], run)
    tokenize = Tokenizer(
        load_tokenizer(run / "tokenizer"), folder.text_encoder.max_position_embeddings
    )
    params = {
        name: unflatten(drawn(flatten(param_shapes(name, getattr(folder, name)))))
        for name in ("vae", "text_encoder")
    }
    texts = [
        "make the circle blue",
        "red",
        "make it red",
        "blue circle",
        "the the",
        "make",
        "circle red",
        "make the red blue",
    ]
    pixels = RNG.integers(0, 256, (2, 8, 2, 16, 16, 3)).astype(np.uint8)
    batch = {
        "source": pixels[0],
        "edited": pixels[1],
        "tokens": np.stack([tokenize(text) for text in texts]),
        "serial": np.arange(8, dtype=np.uint32),
    }
    return World(config, folder, params, tokenize(""), batch)


@pytest.fixture(scope="module")
def encoded(world):
    """The world's batch by the nets themselves, asked directly: source and target (mean, std), texts, the empty text."""
    vae, text = AutoencoderKL(world.folder.vae), CLIPTextModel(world.folder.text_encoder)

    @jax.jit
    def ask(params, source, edited, tokens):
        found = [
            vae.apply(
                {"params": params["vae"]},
                jnp.concatenate(list(clip)) / 127.5 - 1,
                method=vae.encode,
            )
            for clip in (source, edited)
        ]
        clips = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), found)
        return *clips, text.apply({"params": params["text_encoder"]}, tokens)

    batch = world.batch
    source, target, texts = jax.device_get(
        ask(
            world.params,
            batch["source"].astype(np.float32),
            batch["edited"].astype(np.float32),
            np.stack([*batch["tokens"], world.null]),
        )
    )
    return source, target, texts[:8], texts[8]


def cached(count: int, **changes):
    """Latents of one pixel: a batch of many clips that costs nothing. Source 1, target 0 without a spread, text 7."""
    latents = np.ones((count, 2, 1, 1, 4), np.float32)
    batch = {
        "source_mean": latents,
        "target_mean": 0 * latents,
        "target_std": 0 * latents,
        "text": np.full((count, 2, 16), 7.0, np.float32),
    }
    return batch | {"serial": np.arange(count, dtype=np.uint32)} | changes


def correlation(a, b):
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size)  # in sigmas


# ---- what is drawn for a clip


@pytest.fixture(scope="module")
def many(world):
    """20,000 clips through the keys of a real step; null text of two tokens."""
    keys = clip_keys(KEY, 3, np.arange(N, dtype=np.uint32))
    return world.recorded(cached(N), keys, null=world.null[:2])[1], world.recorded(
        cached(N, target_std=np.ones((N, 2, 1, 1, 4), np.float32)), keys, null=world.null[:2]
    )[1]


def in_four_sigma(hits, rate):
    return abs(hits.sum() - rate * N) < 4 * np.sqrt(N * rate * (1 - rate))


def test_dropout_is_decided_by_one_draw():
    r = jnp.asarray([0, 0.0499, 0.0501, 0.0999, 0.1001, 0.1499, 0.1501, 0.999])
    text, video = condition_dropout(r, CondDropoutConfig())
    assert text.tolist() == [True] * 4 + [False] * 4
    assert video.tolist() == [False, False, True, True, True, True, False, False]
    text, video = condition_dropout(
        random.uniform(random.key(1), (N,)), CondDropoutConfig(text=0.1, both=0.02, video=0.3)
    )
    for hits, rate in ((text & ~video, 0.1), (text & video, 0.02), (video & ~text, 0.3)):
        assert in_four_sigma(np.asarray(hits), rate)


def test_dropout_rates_of_the_actual_keys(many):
    text, video = many[0]["text"][:, 0, 0] != 7, (many[0]["source"] == 0).all((1, 2, 3, 4))
    for hits in (text & ~video, text & video, video & ~text):
        assert in_four_sigma(hits, 0.05)
    assert (many[0]["source"][~video] == 1).all() and (many[0]["text"][~text] == 7).all()


def test_one_uniform_timestep_a_clip(many):
    t = many[0]["t"]
    assert t.shape == (N,) and t.dtype == np.int32 and t.min() == 0 and t.max() == 999
    counts = np.bincount(t // 50, minlength=20)
    assert ((counts - N / 20) ** 2 / (N / 20)).sum() < 45, (
        "chi squared of 19 degrees of freedom: a chance of 1 in 1,000"
    )


def test_noise_is_independent_in_everything(many, world):
    """Of frames, clips, timesteps, dropout and of the draw from the posterior: a key used twice shows."""
    plain, spread = many
    alpha_bar = world.objective().alphas_cumprod[plain["t"]].reshape(-1, 1, 1, 1, 1)
    noise = plain["x_t"] / np.sqrt(1 - alpha_bar)
    assert noise.std() == pytest.approx(1, abs=0.01) and abs(noise.mean()) < 0.01
    assert correlation(noise[:, 0], noise[:, 1]) < 4 and correlation(noise[:-1], noise[1:]) < 4
    some = np.flatnonzero(alpha_bar.ravel() > 0.1)
    sample = (spread["x_t"] - plain["x_t"])[some] / np.sqrt(alpha_bar[some]) / SCALING
    assert sample.std() == pytest.approx(1, abs=0.01)
    assert correlation(sample, noise[some]) < 4 and correlation(sample[:, 0], sample[:, 1]) < 4
    dropout = (plain["text"][:, 0, 0] != 7).astype(float)
    first = noise[:, 0, 0, 0, 0]
    assert (
        correlation(first, plain["t"]) < 4
        and correlation(first, dropout) < 4
        and correlation(dropout, plain["t"]) < 4
    )


def test_a_clips_draws_hang_on_its_serial_and_the_step_alone(world):
    serial = np.arange(100, 116, dtype=np.uint32)
    means = RNG.standard_normal((2, 16, 2, 1, 1, 4)).astype(np.float32)
    batch = cached(
        16, source_mean=means[0], target_mean=means[1], target_std=abs(means[0]), serial=serial
    )

    def told(rows, step=3):
        part = {name: x[rows] for name, x in batch.items()}
        found, seen = world.recorded(
            part, clip_keys(KEY, step, part["serial"]), null=world.null[:2], drop=(0.3, 0.3, 0.3)
        )
        return seen | {"total": found.total}

    whole, order = told(np.arange(16)), RNG.permutation(16)
    mixed, half = told(order), told(np.arange(8, 16))
    for name, value in whole.items():
        np.testing.assert_allclose(mixed[name], value[order], rtol=1e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(half[name], value[8:], rtol=1e-6, atol=1e-6, err_msg=name)
    later = told(np.arange(16), step=4)
    assert (later["t"] != whole["t"]).sum() > 12 and correlation(later["x_t"], whole["x_t"]) < 6


# ---- what becomes of a clip


def test_source_is_the_mode_unscaled_and_target_a_sample_times_the_factor(world, encoded):
    (mean, _), (target_mean, target_std), texts, _ = encoded
    keys = clip_keys(KEY, 0, world.batch["serial"])
    _, seen = world.recorded(
        world.batch, keys, drop=(0.0, 0.0, 0.0), alpha_bar=np.ones(1000)
    )  # no noise: x_t is x0
    np.testing.assert_allclose(seen["source"], mean, atol=2e-5 * abs(mean).max())
    np.testing.assert_allclose(seen["text"], texts, atol=2e-5 * abs(texts).max())
    z = (seen["x_t"] / SCALING - target_mean) / target_std
    assert z.std() == pytest.approx(1, abs=4 / np.sqrt(2 * z.size)) and abs(z.mean()) < 4 / np.sqrt(
        z.size
    )
    assert correlation(z[:, 0], z[:, 1]) < 4


@pytest.mark.parametrize(
    ("drop", "text", "video"),
    [((1.0, 0.0, 0.0), True, False), ((0.0, 1.0, 0.0), True, True), ((0.0, 0.0, 1.0), False, True)],
)
def test_a_dropped_text_is_the_empty_one_and_a_dropped_clip_is_zero(
    world, encoded, drop, text, video
):
    (mean, _), _, texts, null = encoded
    _, seen = world.recorded(world.batch, clip_keys(KEY, 0, world.batch["serial"]), drop=drop)
    np.testing.assert_allclose(
        seen["text"],
        np.broadcast_to(null, texts.shape) if text else texts,
        atol=2e-5 * abs(texts).max(),
    )
    np.testing.assert_allclose(
        seen["source"], 0 * mean if video else mean, atol=0 if video else 2e-5 * abs(mean).max()
    )
    assert np.ptp(texts, axis=0).max() > 0.1 and abs(texts - null).max() > 0.1, (
        "the texts must differ for this to say anything"
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_what_a_hand_computes_from_what_the_net_was_told(world, kind):
    """smooth_x0 at weight 0.3, min-SNR 5; the other readings: tests/diffusion/test_losses.py."""
    folder = dataclasses.replace(
        world.folder,
        scheduler=world.folder.scheduler
        | {"prediction_type": kind, "rescale_betas_zero_snr": False},
    )
    there = dataclasses.replace(world, folder=folder)
    means = RNG.standard_normal((2, 6, 3, 4, 4, 4)).astype(np.float32)
    t = np.array([1, 200, 400, 600, 800, 950], np.int32)
    batch = cached(6, source_mean=means[0], target_mean=means[1], target_std=0 * means[1])
    loss = LossConfig(frame_difference="smooth_x0", frame_weight=0.3, snr_gamma=5.0)
    found, seen = there.recorded(
        batch, clip_keys(KEY, 0, batch["serial"]), train=False, t=t, loss=loss, null=world.null[:2]
    )
    np.testing.assert_array_equal(found.t, t)
    prediction = np.asarray(
        stand_in(seen["x_t"], seen["t"], Condition(seen["text"], seen["source"]))
    )
    for i, a in enumerate(world_alpha_bar(t)):
        x0, x_t, p, snr = SCALING * means[1][i], seen["x_t"][i], prediction[i], a / (1 - a)
        eps = (x_t - np.sqrt(a) * x0) / np.sqrt(1 - a)
        y = eps if kind == "epsilon" else np.sqrt(a) * eps - np.sqrt(1 - a) * x0
        clean = (
            (x_t - np.sqrt(1 - a) * p) / np.sqrt(a)
            if kind == "epsilon"
            else np.sqrt(a) * x_t - np.sqrt(1 - a) * p
        )
        parts = {
            "noise_loss": np.mean((p - y) ** 2),
            "frame_loss": a * np.mean(np.diff(clean, axis=0) ** 2),
        }
        for name, value in parts.items():
            assert found.parts[name][i] == pytest.approx(value, rel=2e-4), name
        weight = min(snr, 5) / (snr if kind == "epsilon" else snr + 1)
        assert found.total[i] == pytest.approx(
            weight * (parts["noise_loss"] + 0.3 * parts["frame_loss"]), rel=2e-4
        )


def world_alpha_bar(t):
    """Stable Diffusion's schedule, written out."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[t]


def test_cached_latents_give_the_loss_of_the_pixels(world, encoded):
    source, target, texts, _ = encoded
    cache = {
        "source_mean": source.mean,
        "target_mean": target.mean,
        "target_std": target.std,
        "text": texts,
        "serial": world.batch["serial"],
    }
    keys = clip_keys(KEY, 7, world.batch["serial"])
    drop = (0.2, 0.2, 0.2)
    (pixels, _), (latents, _) = (
        world.recorded(batch, keys, drop=drop) for batch in (world.batch, cache)
    )
    np.testing.assert_allclose(latents.total, pixels.total, rtol=2e-5)
    other, _ = world.recorded(cache | {"target_std": 2 * target.std}, keys, drop=drop)
    assert abs(other.total / pixels.total - 1).max() > 1e-3


def test_nothing_is_dropped_outside_of_training(world):
    batch = cached(8)
    _, seen = world.recorded(
        batch,
        clip_keys(KEY, 0, batch["serial"]),
        drop=(0.0, 1.0, 0.0),
        train=False,
        null=world.null[:2],
    )
    assert (seen["source"] == 1).all() and (seen["text"] == 7).all()


def test_text_to_image_has_no_source(world):
    batch, told = {"clip": world.batch["edited"][:, :1], "tokens": world.batch["tokens"]}, []
    made = world.objective(task="text_to_image")
    made.denoise = lambda params, x_t, t, cond, rngs: told.append((x_t.shape, cond.source)) or x_t
    jax.eval_shape(
        lambda: made.losses(
            world.params | {"unet": {}}, batch, clip_keys(KEY, 0, np.arange(8)), True
        )
    )
    assert told == [((8, 1, 8, 8, 4), None)]


def test_temporal_dropout_acts_in_training_alone(world):
    unet = dataclasses.replace(world.folder.unet, temporal_dropout=0.1)
    made = dataclasses.replace(
        world, folder=dataclasses.replace(world.folder, unet=unet)
    ).objective(null=world.null[:2])
    calls = []
    for name in ("denoise", "denoise_train"):
        setattr(
            made,
            name,
            lambda params, x_t, t, cond, rngs, name=name: calls.append((name, rngs)) or x_t,
        )
    for train in (True, False):
        jax.eval_shape(
            lambda train=train: made.losses(
                world.params | {"unet": {}}, cached(4), clip_keys(KEY, 0, jnp.arange(4)), train
            )
        )
    assert [name for name, _ in calls] == ["denoise_train", "denoise"] and "dropout" in calls[0][1]


def test_the_autoencoders_loss_is_what_a_hand_computes(world, encoded):
    _, (mean, std), _, _ = encoded
    vae, clip, keys = (
        AutoencoderKL(world.folder.vae),
        world.batch["edited"],
        clip_keys(KEY, 0, world.batch["serial"]),
    )
    made = Autoencoding(world.folder, 0.01, jnp.float32)
    z = np.stack([random.normal(key, mean.shape[1:]) for key in keys])

    @jax.jit
    def both(params, latents):
        found = [made.losses(params, {"clip": clip}, keys, train) for train in (False, True)]
        return found, [
            vae.apply({"params": params["vae"]}, x.reshape(16, 8, 8, 4), method=vae.decode)
            for x in latents
        ]

    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(
        normal(torch.tensor(mean), torch.tensor(std)), normal(0.0, 1.0)
    ).numpy()
    for found, back in zip(
        *jax.device_get(both(world.params, (mean, mean + std * z))), strict=True
    ):
        error = back.astype(np.float64).reshape(clip.shape) - (clip / 127.5 - 1)
        l1, kl = abs(error).mean((1, 2, 3, 4)), divergence.sum((1, 2, 3, 4)) / (2 * 16 * 16 * 3)
        hand = {
            "l1": l1,
            "kl": kl,
            "mse": (error**2).mean((1, 2, 3, 4)),
            "latent_square": (mean**2).mean((1, 2, 3, 4)),
        }
        assert found.parts.keys() == hand.keys()
        for name, value in hand.items():
            np.testing.assert_allclose(found.parts[name], value, rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(found.total, l1 + 0.01 * kl, rtol=2e-4)


# ---- the optimiser step, on a regression


class Regression:
    """|| x W + b - y - noise ||^2 of each row; the noise is drawn from the row's key."""

    def __init__(self, noise: float = 0.0):
        self.noise = noise

    def losses(self, params, batch, keys, train, t=None):
        layer, drawn = params["unet"]["layer"], jax.vmap(lambda key: random.normal(key, (3,)))(keys)
        found = batch["x"] @ layer["kernel"] + layer["bias"][None] + params["vae"]["offset"][None]
        total = jnp.square(found - batch["y"] - self.noise * drawn).mean(1)
        return Losses(total, {"size": jnp.abs(found).mean(1)})


X, Y, W = RNG.standard_normal((8, 5)), RNG.standard_normal((8, 3)), RNG.standard_normal((5, 3))
ROWS = {"x": X, "y": Y, "serial": np.arange(8, dtype=np.uint32)}
PLAIN = OptimConfig(lr=0.1, schedule="constant", warmup=0, clip=0.0)


def regress(config: OptimConfig, steps: int, noise=0.0, dtype=np.float32):
    """[state before, after the first step, ...], [metrics of each step]."""
    params = {
        "unet/layer/kernel": jnp.asarray(W, dtype),
        "unet/layer/bias": jnp.full(3, 0.5, dtype),
    }
    frozen = {"vae/offset": jnp.full(3, 0.25, dtype)}
    batch = {name: x.astype(dtype) if x.dtype == np.float64 else x for name, x in ROWS.items()}
    optimizer = make_optimizer(config, steps)
    step = jax.jit(
        partial(
            train_step,
            objective=Regression(noise),
            optimizer=optimizer,
            config=config,
            schedule=learning_rate(config, steps),
        )
    )
    states, metrics = [new_state(params, optimizer, config, seed=0)], []
    for _ in range(steps):
        state, told = step(states[-1], frozen, batch)
        states.append(state)
        metrics.append({name: float(value) for name, value in told.items()})
    return states, metrics


def test_adamw_is_torchs():
    with jax.enable_x64(True):
        config = dataclasses.replace(PLAIN, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3)
        states, metrics = regress(config, 3, dtype=np.float64)
    kernel, bias = (
        torch.tensor(W, requires_grad=True),
        torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True),
    )
    groups = [{"params": [kernel], "weight_decay": 0.3}, {"params": [bias], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    for state, told in zip(states[1:], metrics, strict=True):
        before = [p.detach().clone() for p in (kernel, bias)]
        theirs.zero_grad()
        loss = (torch.tensor(X) @ kernel + bias + 0.25 - torch.tensor(Y)).square().mean()
        loss.backward()
        gradient = torch.cat([p.grad.ravel() for p in (kernel, bias)])
        theirs.step()
        np.testing.assert_allclose(state.params["unet/layer/kernel"], kernel.detach(), rtol=1e-9)
        np.testing.assert_allclose(state.params["unet/layer/bias"], bias.detach(), rtol=1e-9)
        moved = torch.cat(
            [(p.detach() - old).ravel() for p, old in zip((kernel, bias), before, strict=True)]
        )
        norms = {
            "loss": loss.detach(),
            "grad_norm": gradient.norm(),
            "update_norm": moved.norm(),
            "param_norm": torch.cat([kernel.ravel(), bias]).detach().norm(),
        }
        for name, value in norms.items():
            assert told[name] == pytest.approx(float(value), rel=1e-5), name
        assert told["lr"] == pytest.approx(0.1)


def test_ema_is_warmed_up_and_follows_once_a_step():
    assert [float(ema_decay(n, 0.999)) for n in (0, 8, 10**6)] == pytest.approx([0.1, 0.5, 0.999])
    states, _ = regress(dataclasses.replace(PLAIN, ema=0.2, accumulation=2), 5)
    average = {name: np.asarray(p, np.float64) for name, p in states[0].params.items()}
    for n, state in enumerate(states[1:]):
        decay = min(0.2, (1 + n) / (10 + n))  # the limit bites from the third step on
        average = {
            name: decay * old + (1 - decay) * np.asarray(state.params[name], np.float64)
            for name, old in average.items()
        }
        for name, value in average.items():
            np.testing.assert_allclose(state.ema[name], value, rtol=1e-6)
    assert [int(state.step) for state in states] == list(range(6))
    assert regress(dataclasses.replace(PLAIN, ema=0.0), 1)[0][-1].ema == {}


def test_accumulation_is_the_big_batch():
    config = OptimConfig(lr=0.05, warmup=2, clip=0.5, ema=0.9)
    (one, told), *others = (
        regress(dataclasses.replace(config, accumulation=count), 4, noise=1.0)
        for count in (1, 2, 4)
    )
    for many, told_many in others:
        for part in ("params", "ema"):
            for name, value in getattr(one[-1], part).items():
                np.testing.assert_allclose(
                    getattr(many[-1], part)[name], value, rtol=1e-6, atol=1e-7, err_msg=name
                )
        for a, b in zip(told, told_many, strict=True):
            assert b == pytest.approx(a, rel=1e-6)
    assert told[0]["loss"] != told[1]["loss"]


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e6])
def test_gradients_are_clipped_by_their_common_norm(clip):
    states, metrics = regress(dataclasses.replace(PLAIN, clip=clip), 1)
    first = optax.tree_utils.tree_get(states[1].opt_state, "mu")
    size = float(optax.global_norm(first)) / (1 - PLAIN.b1)
    residual = X @ W + 0.75 - Y
    kernel, bias = 2 * X.T @ residual / residual.size, 2 * residual.sum(0) / residual.size
    norm = np.sqrt((kernel**2).sum() + (bias**2).sum())
    assert norm > 0.02
    assert metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-5), (
        "what is logged is the norm before clipping"
    )
    factor = 0.01 / norm if clip == 0.01 else 1.0
    assert size == pytest.approx(norm * factor, rel=1e-5)
    np.testing.assert_allclose(
        first["unet/layer/kernel"], (1 - PLAIN.b1) * factor * kernel, rtol=1e-4, atol=1e-6 * factor
    )


@pytest.mark.parametrize(
    ("schedule", "middle", "quarter"),
    [("constant", 1.0, 1.0), ("linear", 0.6, 0.8), ("cosine", 0.6, 0.6 + 0.4 * np.sqrt(0.5))],
)
def test_learning_rates(schedule, middle, quarter):
    lr = learning_rate(OptimConfig(lr=0.01, schedule=schedule, warmup=4, final_lr=0.2), 24)
    shares = [float(lr(step)) / 0.01 for step in (0, 1, 2, 3, 4, 9, 14, 24, 30)]
    end = 1.0 if schedule == "constant" else 0.2
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, quarter, middle, end, end], rel=1e-5)
    without = learning_rate(OptimConfig(lr=0.01, schedule=schedule, warmup=0, final_lr=0.2), 20)
    assert [float(without(step)) / 0.01 for step in (0, 10, 20)] == pytest.approx(
        [1, middle, end], rel=1e-5
    )
    assert float(learning_rate(OptimConfig(lr=0.01, warmup=1), 5)(0)) == pytest.approx(0.01)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_weight_decay_is_of_kernels_alone_and_in_step_with_the_learning_rate(optimizer):
    names = (
        "unet/conv/kernel",
        "unet/conv/bias",
        "unet/norm/scale",
        "text_encoder/token_embedding/embedding",
    )
    params = {name: jnp.full((4, 4), 2.0) for name in names}
    chain = make_optimizer(
        OptimConfig(optimizer=optimizer, lr=0.1, warmup=0, schedule="constant", weight_decay=0.3),
        10,
    )
    moved, _ = chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)
    np.testing.assert_allclose(moved[names[0]], np.full((4, 4), -0.1 * 0.3 * 2.0), rtol=1e-5)
    for name in names[1:]:
        assert not np.asarray(moved[name]).any(), name


def test_adafactor_keeps_rows_and_columns_and_learns():
    config = dataclasses.replace(PLAIN, optimizer="adafactor", lr=0.02)
    params = {"unet/layer/kernel": jnp.ones((256, 128))}
    state = make_optimizer(config, 10).init(params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert {(256,), (128,)} <= shapes and (256, 128) not in shapes
    _, metrics = regress(config, 40)
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert metrics[0]["update_norm"] == pytest.approx(0.02 * np.sqrt(18), rel=1e-2), (
        "lr is the size of a weight's first step, as in AdamW"
    )


# ---- trained and frozen


@pytest.fixture(scope="module")
def shapes(world):
    """Parameters by name, as shapes: of the world's nets, every kind of temporal layer among them."""
    return flatten(
        {
            name: param_shapes(name, getattr(world.folder, name))
            for name in ("unet", "vae", "text_encoder")
        }
    )


def test_presets_pick_what_they_say(world, shapes):
    image_net = dataclasses.replace(world.folder.unet, temporal=())
    image_names = {f"unet/{name}" for name in flatten(param_shapes("unet", image_net))}
    unet = {name for name in shapes if name.split("/")[0] == "unet"}
    assert trainable(shapes, ("temporal",)) == unet - image_names and len(unet - image_names) > 20
    assert trainable(shapes, ("unet",)) == unet and trainable(shapes, ("spatial",)) == image_names
    attention = {name for name in unet if {"attn1", "attn2"} & set(name.split("/"))}
    assert trainable(shapes, ("attention",)) == attention and len(attention) > 10
    assert trainable(shapes, ("vae",)) == {name for name in shapes if name.startswith("vae")}
    keys = {name for name in shapes if name.endswith(("attn2/to_k/kernel", "attn2/to_v/kernel"))}
    assert trainable(shapes, (r"attn2/to_[kv]/", "text_encoder")) == keys | {
        name for name in shapes if name.startswith("text_encoder")
    }


@pytest.mark.parametrize("pattern", ["tempral", "attn[", "^down_blocks"])
def test_patterns_that_pick_nothing_are_named(shapes, pattern):
    with pytest.raises(UserError, match="optim.trainable") as error:
        trainable(shapes, ("unet", pattern))
    assert pattern in str(error.value) and "temporal" in str(error.value)


def heavy(jaxpr) -> dict[str, int]:
    """How many convolutions, products and recomputed blocks a program holds, those of its parts included."""
    counts = dict.fromkeys(("conv_general_dilated", "dot_general", "checkpoint", "remat2"), 0)
    for equation in jaxpr.eqns:
        if equation.primitive.name in counts:
            counts[equation.primitive.name] += 1
        for part in jax.core.jaxprs_in_params(equation.params):
            for name, count in heavy(part).items():
                counts[name] += count
    return counts


def step_counts(world, shapes, **changes):
    """(what the real training step holds, the new state as shapes)."""
    config = OptimConfig(**changes)
    chosen, optimizer = trainable(shapes, config.trainable), make_optimizer(config, 5)
    trained, frozen = (
        {name: leaf for name, leaf in shapes.items() if (name in chosen) == which}
        for which in (True, False)
    )
    state = jax.eval_shape(lambda p: new_state(p, optimizer, config, 0), trained)
    step = partial(
        train_step,
        objective=world.objective(),
        optimizer=optimizer,
        config=config,
        schedule=learning_rate(config, 5),
    )
    whole, (after, _) = jax.make_jaxpr(step, return_shape=True)(state, frozen, world.batch)
    return heavy(whole.jaxpr), after


@pytest.fixture(scope="module")
def forward(world, shapes):
    """What the losses hold by themselves."""
    keys = clip_keys(KEY, 0, world.batch["serial"])
    made = world.objective()
    return heavy(
        jax.make_jaxpr(lambda params: made.losses(unflatten(params), world.batch, keys, True))(
            shapes
        ).jaxpr
    )


def net_counts(world, shapes, remat="none"):
    """What the U-Net holds by itself."""
    made, part = (
        world.objective(optim__remat=remat),
        {name: leaf for name, leaf in shapes.items() if name.startswith("unet/")},
    )
    cond = Condition(jnp.zeros((8, 16, 16)), jnp.zeros((8, 2, 8, 8, 4)))
    return heavy(
        jax.make_jaxpr(
            lambda params: made.denoise(unflatten(params)["unet"], cond.source, jnp.zeros(8), cond)
        )(part).jaxpr
    )


def test_no_gradient_is_formed_of_frozen_weights(world, shapes, forward):
    """Where only the last convolution is trained, the whole backward pass is its kernel's gradient: one convolution."""
    step, after = step_counts(world, shapes, trainable=("^unet/conv_out/",))
    assert forward["conv_general_dilated"] > 30 and forward["dot_general"] > 30
    assert step["conv_general_dilated"] == forward["conv_general_dilated"] + 1
    assert step["dot_general"] == forward["dot_general"]
    names = {"unet/conv_out/kernel", "unet/conv_out/bias"}
    assert after.params.keys() == after.ema.keys() == names
    leaves = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(after.opt_state)
        if leaf.shape
    ]
    assert len(leaves) == 4 and all(any(f"'{name}'" in leaf for name in names) for leaf in leaves)


def test_no_gradient_flows_into_the_autoencoder_of_an_editor(world, shapes, forward):
    """Not even where it is named as trained; so none is formed where it is frozen."""
    step, _ = step_counts(world, shapes, trainable=("unet", "vae"))
    backward = (
        2 * net_counts(world, shapes)["conv_general_dilated"] - 1
    )  # by the kernel and by the input; conv_in's input needs none
    assert step["conv_general_dilated"] == forward["conv_general_dilated"] + backward


def test_remat_reaches_the_net(world, shapes):
    plain, block = (net_counts(world, shapes, remat) for remat in ("none", "block"))
    assert plain["checkpoint"] + plain["remat2"] == 0 and block["checkpoint"] + block["remat2"] > 5
    assert plain["dot_general"] == block["dot_general"]


@pytest.fixture(scope="module")
def placed():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.mark.slow
def test_the_real_nets_step(world, shapes, placed):
    """Accumulation of 2 and recomputed blocks are the plain step; frozen weights stay as they are, trained ones all move."""
    weights = drawn(shapes)
    chosen = trainable(shapes, ("unet",))
    frozen = {name: leaf for name, leaf in weights.items() if name not in chosen}
    before = jax.device_get(frozen)
    batch = jax.device_put(world.batch)

    def stepped(accumulation=1, remat="none"):
        config = OptimConfig(
            lr=0.01, warmup=0, eps=1e-3, accumulation=accumulation
        )  # a large eps: Adam would blow up rounding where g is 0
        optimizer = make_optimizer(config, 5)
        state = new_state(
            {name: jnp.array(weights[name]) for name in sorted(chosen)}, optimizer, config, 0
        )
        program = CompiledStep(
            world.objective(optim__remat=remat),
            optimizer,
            config,
            learning_rate(config, 5),
            jax.tree.map(lambda _: placed, state),
        )
        assert not program.is_compiled_for(batch)
        program.compile(state, frozen, batch)
        assert program.is_compiled_for(batch)
        state, metrics = program(state, frozen, batch)
        return *jax.device_get((state, metrics)), program.flops

    state, metrics, operations = stepped()
    assert operations > 0
    for name, value in before.items():
        np.testing.assert_array_equal(frozen[name], value, err_msg=name)
    still = [
        name for name in state.params if not (state.params[name] != np.asarray(weights[name])).any()
    ]
    assert still == []
    for changes in (dict(accumulation=2), dict(remat="block")):
        other, told, counted = stepped(**changes)
        if "accumulation" in changes:  # both turns of the loop; of what is no product, one
            assert counted == pytest.approx(operations, rel=0.15)
        for name in ("loss", "noise_loss", "frame_loss", "grad_norm"):
            assert told[name] == pytest.approx(
                float(metrics[name]), rel=2e-6 if "loss" in name else 1e-5
            ), (changes, name)
        for part in ("params", "ema"):
            for name, value in getattr(state, part).items():
                np.testing.assert_allclose(
                    getattr(other, part)[name],
                    value,
                    atol=1e-6 * max(1, abs(value).max()),
                    err_msg=f"{changes} {name}",
                )
