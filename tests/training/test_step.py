"""The optimiser step on a linear regression: against torch and by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from ivid2vid_jax.training.checkpoints import describe
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import OptimConfig
from ivid2vid_jax.training.objectives import Losses
from ivid2vid_jax.training.pipeline_export import ema_params
from ivid2vid_jax.training.step import (
    ema_decay,
    learning_rate,
    make_optimizer,
    new_state,
    offload,
    train_step,
)
from tests.support.references import torch

RNG = np.random.default_rng(0)


class Regression:
    """|| x W + b - y - noise ||^2 of each row; the noise comes from the row's key."""

    def __init__(self, noise: float = 0.0):
        self.noise = noise

    def losses(self, params, batch, keys, train, t=None):
        layer, offset = params["unet"]["layer"], params["vae"]["offset"]
        noise = jax.vmap(lambda key: random.normal(key, (3,)))(keys)
        prediction = batch["x"] @ layer["kernel"] + layer["bias"][None] + offset[None]
        total = jnp.square(prediction - batch["y"] - self.noise * noise).mean(1)
        return Losses(total, {"size": jnp.abs(prediction).mean(1)})


X, Y, W = RNG.standard_normal((8, 5)), RNG.standard_normal((8, 3)), RNG.standard_normal((5, 3))
ROWS = {"x": X, "y": Y, "serial": np.arange(8, dtype=np.uint32)}
PLAIN = OptimConfig(lr=0.1, schedule="constant", warmup=0, grad_clip=0.0)


def regress(config: OptimConfig, steps: int, noise=0.0, dtype=np.float32):
    """Trains -> ([state before, after the first step, ...], [metrics of each step])."""
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
        state, values = step(states[-1], frozen, batch)
        states.append(state)
        metrics.append({name: float(value) for name, value in values.items()})
    return states, metrics


def test_adamw_is_torchs():
    with jax.enable_x64(True):
        config = dataclasses.replace(PLAIN, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3)
        states, metrics = regress(config, 3, dtype=np.float64)
    kernel = torch.tensor(W, requires_grad=True)
    bias = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [kernel], "weight_decay": 0.3}, {"params": [bias], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    for state, values in zip(states[1:], metrics, strict=True):
        before = torch.cat([p.detach().clone().ravel() for p in (kernel, bias)])
        adamw.zero_grad()
        loss = (torch.tensor(X) @ kernel + bias + 0.25 - torch.tensor(Y)).square().mean()
        loss.backward()
        gradient = torch.cat([p.grad.ravel() for p in (kernel, bias)])
        adamw.step()
        np.testing.assert_allclose(state.params["unet/layer/kernel"], kernel.detach(), rtol=1e-9)
        np.testing.assert_allclose(state.params["unet/layer/bias"], bias.detach(), rtol=1e-9)
        after = torch.cat([kernel.ravel(), bias]).detach()
        expected = {
            "loss": loss.detach(),
            "grad_norm": gradient.norm(),
            "update_norm": (after - before).norm(),
            "param_norm": after.norm(),
        }
        for name, value in expected.items():
            assert values[name] == pytest.approx(float(value), rel=1e-5), name
        assert values["lr"] == pytest.approx(0.1)


def test_ema_has_a_warm_up_and_one_update_per_step():
    assert [float(ema_decay(n, 0.999)) for n in (0, 8, 10**6)] == pytest.approx([0.1, 0.5, 0.999])
    states, _ = regress(dataclasses.replace(PLAIN, ema=0.2, accumulation=2), 5)
    average = {name: np.asarray(p, np.float64) for name, p in states[0].params.items()}
    for n, state in enumerate(states[1:]):
        decay = min(0.2, (1 + n) / (10 + n))  # the limit acts from the third step on
        average = {
            name: decay * old + (1 - decay) * np.asarray(state.params[name], np.float64)
            for name, old in average.items()
        }
        for name, value in average.items():
            np.testing.assert_allclose(state.ema[name], value, rtol=1e-6)
    assert [int(state.step) for state in states] == list(range(6))
    assert regress(dataclasses.replace(PLAIN, ema=0.0), 1)[0][-1].ema == {}


def test_accumulation_equals_the_whole_batch():
    config = OptimConfig(lr=0.05, warmup=2, grad_clip=0.5, ema=0.9)
    (expected, expected_metrics), *others = (
        regress(dataclasses.replace(config, accumulation=count), 4, noise=1.0)
        for count in (1, 2, 4)
    )
    for states, metrics in others:
        for part in ("params", "ema"):
            for name, value in getattr(expected[-1], part).items():
                np.testing.assert_allclose(
                    getattr(states[-1], part)[name], value, rtol=1e-6, atol=1e-7, err_msg=name
                )
        for values, expected_values in zip(metrics, expected_metrics, strict=True):
            assert values == pytest.approx(expected_values, rel=1e-6)
    assert expected_metrics[0]["loss"] != expected_metrics[1]["loss"]


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e6])
def test_gradients_are_clipped_by_their_global_norm(clip):
    states, metrics = regress(dataclasses.replace(PLAIN, grad_clip=clip), 1)
    first_moment = optax.tree_utils.tree_get(states[1].opt_state, "mu")
    size = float(optax.global_norm(first_moment)) / (1 - PLAIN.b1)
    residual = X @ W + 0.75 - Y
    kernel, bias = 2 * X.T @ residual / residual.size, 2 * residual.sum(0) / residual.size
    norm = np.sqrt((kernel**2).sum() + (bias**2).sum())
    assert norm > 0.02
    assert metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-5), (
        "the log has the norm before clipping"
    )
    factor = 0.01 / norm if clip == 0.01 else 1.0
    assert size == pytest.approx(norm * factor, rel=1e-5)
    np.testing.assert_allclose(
        first_moment["unet/layer/kernel"],
        (1 - PLAIN.b1) * factor * kernel,
        rtol=1e-4,
        atol=1e-6 * factor,
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
def test_weight_decay_acts_on_kernels_only_and_scales_with_the_learning_rate(optimizer):
    names = (
        "unet/conv/kernel",
        "unet/conv/bias",
        "unet/norm/scale",
        "text_encoder/token_embedding/embedding",
    )
    params = {name: jnp.full((4, 4), 2.0) for name in names}
    transform = make_optimizer(
        OptimConfig(optimizer=optimizer, lr=0.1, warmup=0, schedule="constant", weight_decay=0.3),
        10,
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zeros, transform.init(params), params)
    np.testing.assert_allclose(updates[names[0]], np.full((4, 4), -0.1 * 0.3 * 2.0), rtol=1e-5)
    for name in names[1:]:
        assert not np.asarray(updates[name]).any(), name


def test_adafactor_stores_rows_and_columns_and_learns():
    config = dataclasses.replace(PLAIN, optimizer="adafactor", lr=0.02)
    params = {"unet/layer/kernel": jnp.ones((256, 128))}
    state = make_optimizer(config, 10).init(params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert {(256,), (128,)} <= shapes and (256, 128) not in shapes
    _, metrics = regress(config, 40)
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert metrics[0]["update_norm"] == pytest.approx(0.02 * np.sqrt(18), rel=1e-2), (
        "as in AdamW, lr is the size of a weight's first update"
    )


@pytest.mark.parametrize("parts", [("ema",), ("moments",), ("ema", "moments")])
def test_offloaded_parts_are_in_host_memory_and_nothing_else_changes(parts):
    """Bit for bit, over some steps of the compiled program."""

    def run(offloaded):
        config = dataclasses.replace(PLAIN, offload=offloaded)
        optimizer, schedule = make_optimizer(config, 3), learning_rate(config, 3)
        params = {"unet/layer/kernel": jnp.asarray(W, np.float32)}
        frozen = {"unet/layer/bias": jnp.ones(3), "vae/offset": jnp.full(3, 0.25)}
        state = new_state(params, optimizer, config, seed=0)
        placed = jax.tree.map(lambda x: x.sharding, state)
        placed = offload(state, placed, offloaded)
        state = jax.device_put(state, placed)
        batch = {name: jnp.asarray(x, x.dtype.name.replace("64", "32")) for name, x in ROWS.items()}
        program = CompiledStep(Regression(), optimizer, config, schedule, placed)
        program.compile(state, frozen, batch)
        for _ in range(3):
            state, _ = program(state, frozen, batch)
        return state

    plain, state = run(()), run(parts)
    for one, other in zip(*map(jax.tree.leaves, (plain, state)), strict=True):
        np.testing.assert_array_equal(one, other)
    kinds = {
        part: {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}
        for part, tree in (
            ("ema", state.ema),
            ("moments", state.opt_state),
            ("params", state.params),
        )
    }
    for part, found in kinds.items():
        assert (found == {"pinned_host"}) == (part in parts), kinds
    assert ema_params(state)["unet/layer/kernel"].sharding.memory_kind == "device"
    sums, expected = describe(state), describe(plain)
    assert {name: leaf.checksum for name, leaf in sums.items()} == {
        name: leaf.checksum for name, leaf in expected.items()
    }
