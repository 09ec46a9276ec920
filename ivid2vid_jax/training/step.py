"""One training step and the state that it updates. Pure functions of jax, flax and optax only."""

import re
from collections.abc import Callable, Collection
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax import random

from ivid2vid_jax.training.config import OptimConfig
from ivid2vid_jax.training.params import unflatten

HOST_MEMORY = "pinned_host"  # JAX's name of host memory that devices read and write directly


class TrainState(flax.struct.PyTreeNode):
    """The state of a training run.

    Attributes:
        step: int32 [], number of optimiser steps taken.
        params: name -> trained weights, float32.
        opt_state: state of the optax optimiser.
        ema: name -> exponential moving average of `params`, float32; {} without one.
        key: uint32 [2], data of the run's PRNG key.
    """

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: Any
    ema: dict[str, jax.Array]
    key: jax.Array


def new_state(
    params: dict[str, jax.Array],
    optimizer: optax.GradientTransformation,
    config: OptimConfig,
    seed: int,
) -> TrainState:
    """The state before the first step. params: the trained weights only."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if config.ema else {},
        key=random.key_data(random.key(seed)),
    )


def offload(state: TrainState, shardings: TrainState, parts: Collection[str]) -> TrainState:
    """The shardings of a state, with the named parts in the pinned memory of the hosts.

    Args:
        state: arrays or ShapeDtypeStructs.
        shardings: of the state, on devices.
        parts: see `OptimConfig.offload`.
    """

    def to_host(tree, placed):
        return jax.tree.map(
            lambda x, where: where.with_memory_kind(HOST_MEMORY) if x.ndim else where, tree, placed
        )

    if "ema" in parts:
        shardings = shardings.replace(ema=to_host(state.ema, shardings.ema))
    if "moments" in parts:
        shardings = shardings.replace(opt_state=to_host(state.opt_state, shardings.opt_state))
    return shardings


def on_device(tree: Any) -> Any:
    """Copies the arrays of a tree that are in host memory to the device; others stay."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), tree)


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, linear or cosine decay to `final_lr * lr` after `steps`."""
    decay_steps, end = max(1, steps - config.warmup), config.lr * config.final_lr
    main = {
        "constant": optax.constant_schedule(config.lr),
        "linear": optax.linear_schedule(config.lr, end, decay_steps),
        "cosine": optax.cosine_decay_schedule(config.lr, decay_steps, config.final_lr),
    }[config.schedule]
    if not config.warmup:
        return main
    # The warm-up starts at lr / warmup, not at 0: the first step already updates the weights.
    return optax.join_schedules(
        [optax.linear_schedule(config.lr / config.warmup, config.lr, config.warmup - 1), main],
        [config.warmup],
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Adafactor; weight decay on kernels only."""
    lr = learning_rate(config, steps)

    def kernels(params):
        return {name: re.search(r"kernel$", name) is not None for name in params}

    if config.optimizer == "adamw":
        main = optax.adamw(
            lr, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=kernels
        )
    else:
        # optax.adafactor scales updates by parameter norms and does not scale weight decay by the
        # learning rate. Here both are as in AdamW.
        decay = optax.add_decayed_weights(config.weight_decay, kernels)
        main = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            decay,
            optax.scale_by_learning_rate(lr),
        )
    return (
        optax.chain(optax.clip_by_global_norm(config.grad_clip), main) if config.grad_clip else main
    )


def ema_decay(n: jax.Array | int, limit: float) -> jax.Array:
    """Decay at the n-th update (from 0): min(limit, (1 + n) / (10 + n))."""
    return jnp.minimum(limit, (1.0 + n) / (10.0 + n))


def clip_keys(key_data: jax.Array, step, serial) -> jax.Array:
    """One PRNG key per clip, [B]: fold_in(fold_in(run's key, step), serial number)."""
    key = random.fold_in(random.wrap_key_data(key_data), step)
    return jax.vmap(lambda number: random.fold_in(key, number))(serial)


def micro_batches(batch: dict, count: int) -> dict:
    """[B, ...] -> [count, B/count, ...]; row i goes to micro-batch i % count.

    So each device keeps its rows where the batch axis is sharded.
    """
    return {
        name: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


def accumulated(function: Callable[[dict], Any], batch: dict, count: int) -> Any:
    """The mean of function(micro_batch), a pytree, over `count` micro-batches of the batch."""
    if count == 1:
        return function(batch)
    split = micro_batches(batch, count)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(
        lambda total, micro_batch: (jax.tree.map(jnp.add, total, function(micro_batch)), None),
        zeros,
        split,
    )
    return jax.tree.map(lambda x: x / count, total)


def train_step(
    state: TrainState,
    frozen: dict[str, jax.Array],
    batch: dict,
    *,
    objective,
    optimizer: optax.GradientTransformation,
    config: OptimConfig,
    schedule: optax.Schedule,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step.

    Args:
        state: the state; only `state.params` gets gradients.
        frozen: name -> weights that are not trained.
        batch: name -> [B, ...], see `data/loader.py`.
        objective: see `training/objectives.py`.
        optimizer: from `make_optimizer`.
        config: for accumulation and EMA.
        schedule: the learning rate, which is logged.

    Returns:
        The new state and scalar metrics: the loss and its parts, gradient, update and parameter
        norms, and the learning rate.
    """

    def loss_fn(params, micro_batch):
        losses = objective.losses(
            unflatten({**frozen, **params}),
            micro_batch,
            clip_keys(state.key, state.step, micro_batch["serial"]),
            train=True,
        )
        means = {
            name: jnp.mean(part) for name, part in {"loss": losses.total, **losses.parts}.items()
        }
        return means["loss"], means

    def gradients(micro_batch):
        (_, means), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, micro_batch)
        return grads, means

    grads, metrics = accumulated(gradients, batch, config.accumulation)
    # Offloaded parts come here, and `CompiledStep` returns them to where they were.
    moments = on_device(state.opt_state) if "moments" in config.offload else state.opt_state
    averages = on_device(state.ema) if "ema" in config.offload else state.ema
    updates, opt_state = optimizer.update(grads, moments, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(state.step, config.ema)
    ema = {name: decay * average + (1 - decay) * params[name] for name, average in averages.items()}
    metrics |= {
        "lr": schedule(state.step),
        "grad_norm": optax.global_norm(grads),
        "update_norm": optax.global_norm(updates),
        "param_norm": optax.global_norm(params),
    }
    new = TrainState(
        step=state.step + 1, params=params, opt_state=opt_state, ema=ema, key=state.key
    )
    return new, metrics
