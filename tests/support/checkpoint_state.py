"""A small training state for the tests of checkpoints."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ivid2vid_jax.training.checkpoints import Checkpoints

DATA = {"global_next_index": 192}
META = {"config": {"lr": 1e-4, "sizes": [1, 2]}, "origin": None}


@flax.struct.dataclass
class State:
    """The fields of TrainState."""

    step: jax.Array
    params: dict
    opt_state: Any
    ema: dict
    key: jax.Array


def make_state(step=0, rows=64, **params) -> State:
    """Random values, so that they do not compress, with parameter names like the U-Net's."""
    rng = np.random.default_rng(step)
    weights = {
        "down_blocks.0/conv.1/kernel": rng.normal(size=(rows, 32)).astype(np.float32),
        "conv_in/bias": rng.normal(size=7).astype(np.float32),
    }
    weights = jax.tree.map(jnp.asarray, weights | params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-4))
    )
    key = jax.random.key_data(jax.random.key(step))
    return State(jnp.int32(step), weights, optimizer.init(weights), {}, key)


def abstract(tree):
    """The tree as ShapeDtypeStructs with shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(tree, expected):
    """Asserts equal structure, dtypes, shardings and bits."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_states(run, *steps):
    """Saves checkpoints of `make_state(step)`; returns `run`."""
    with Checkpoints(run) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), DATA | {"step": step}, META)
    return run
