"""One training step, and the state it turns into the next. Pure functions; runs with jax, flax and optax alone."""

import re
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax import random

from ivid2vid_jax.training.config import OptimConfig
from ivid2vid_jax.training.params import unflatten


@flax.struct.dataclass
class TrainState:
    """step: int32 [], optimiser steps taken. params, ema: name -> trained weights, float32. key: uint32 [2], the run's PRNG key data."""

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: Any
    ema: dict[str, jax.Array]
    key: jax.Array


def new_state(
    params: dict[str, jax.Array], optimizer, config: OptimConfig, seed: int
) -> TrainState:
    """Before the first step. Only trained weights have an optimiser state and an EMA."""
    ema = jax.tree.map(jnp.copy, params) if config.ema else {}
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        optimizer.init(params),
        ema,
        random.key_data(random.key(seed)),
    )


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, linear or cosine to `final_lr`, which is reached when the last step is done."""
    after, end = max(1, steps - config.warmup), config.lr * config.final_lr
    main = {
        "constant": optax.constant_schedule(config.lr),
        "linear": optax.linear_schedule(config.lr, end, after),
        "cosine": optax.cosine_decay_schedule(config.lr, after, config.final_lr),
    }[config.schedule]
    if not config.warmup:
        return main
    # the first step already moves: warm-up counts from 1
    return optax.join_schedules(
        [optax.linear_schedule(config.lr / config.warmup, config.lr, config.warmup - 1), main],
        [config.warmup],
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Adafactor; weight decay acts on kernels alone."""
    lr = learning_rate(config, steps)

    def kernels(params):
        return {name: re.search(r"kernel$", name) is not None for name in params}

    if config.optimizer == "adamw":
        main = optax.adamw(
            lr, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=kernels
        )
    else:
        # optax.adafactor without its scaling by parameter norms, and with decay times lr: both mean what they mean for AdamW
        decay = optax.add_decayed_weights(config.weight_decay, kernels)
        main = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            decay,
            optax.scale_by_learning_rate(lr),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), main) if config.clip else main


def ema_decay(n, limit: float):
    """Decay at the n-th update (from 0): min(limit, (1 + n) / (10 + n))."""
    return jnp.minimum(limit, (1.0 + n) / (10.0 + n))


def clip_keys(key_data, step, serial):
    """One PRNG key a clip: fold_in(fold_in(run's key, step), serial), [B]."""
    key = random.fold_in(random.wrap_key_data(key_data), step)
    return jax.vmap(lambda number: random.fold_in(key, number))(serial)


def micro_batches(batch: dict, count: int) -> dict:
    """[B, ...] -> [count, B/count, ...]; neighbours go apart, so a split batch axis stays where it is."""
    return {
        name: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


def train_step(
    state: TrainState,
    frozen: dict[str, jax.Array],
    batch: dict,
    *,
    objective,
    optimizer,
    config: OptimConfig,
    schedule,
):
    """One optimiser step -> (state, metrics). frozen: the weights that are not trained; no gradient of them is ever formed.

    Metrics are scalars: loss and its parts, gradient, update and parameter norms, learning rate.
    """

    def loss(params, micro):
        found = objective.losses(
            unflatten({**frozen, **params}),
            micro,
            clip_keys(state.key, state.step, micro["serial"]),
            train=True,
        )
        means = {
            name: jnp.mean(part) for name, part in {"loss": found.total, **found.parts}.items()
        }
        return means["loss"], means

    def one(micro):
        (_, means), grads = jax.value_and_grad(loss, has_aux=True)(state.params, micro)
        return grads, means

    if config.accumulation == 1:
        grads, metrics = one(batch)
    else:
        micros = micro_batches(batch, config.accumulation)
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micros))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(
            lambda total, micro: (jax.tree.map(jnp.add, total, one(micro)), None), zeros, micros
        )
        grads, metrics = jax.tree.map(lambda x: x / config.accumulation, total)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(state.step, config.ema)
    ema = {
        name: decay * average + (1 - decay) * params[name] for name, average in state.ema.items()
    }
    metrics |= {
        "lr": schedule(state.step),
        "grad_norm": optax.global_norm(grads),
        "update_norm": optax.global_norm(updates),
        "param_norm": optax.global_norm(params),
    }
    return TrainState(state.step + 1, params, opt_state, ema, state.key), metrics
