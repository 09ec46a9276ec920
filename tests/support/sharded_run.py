"""One training step on several meshes, compared with the first; and recipes for the runs of tests.

A script, since the number of devices is fixed before JAX starts:

    JAX_NUM_CPU_DEVICES=8 NPROC=16 \
        python -m tests.support.sharded_run FOLDER float32 1,1,1 8,1,1 2,2,2 2,2,2/2

Meshes are data,fsdp,frames[/micro-batches]. FOLDER is empty, or that of an earlier call, whose
tokenizer is reused. Prints a JSON line with `Case.float_dtypes`, then one per mesh: the shapes and
shares that `Case.step` reports, and "errors" against the first mesh (`largest_error`).
"""

import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.extend
import numpy as np

from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.training import init_state, run_folder
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.objectives import make_objective
from ivid2vid_jax.training.step import (
    learning_rate,
    make_optimizer,
    new_state,
    train_step,
)
from ivid2vid_jax.training.train_setup import Tokenizer
from ivid2vid_jax.weights.tokenizer import load_tokenizer
from tests.support.tiny_run import ONE_LEVEL, tiny

# Elements; replaces `sharding.MIN_SHARDED_SIZE`, so that a tiny network's leaves are split.
MIN_SHARDED_SIZE = 8

# Share of the largest norm of all tensors. Smaller tensors are zero in exact arithmetic (a bias
# before a norm), so their values are rounding errors.
NORM_FLOOR = 1e-6


def recipe(output, **changes) -> TrainConfig:
    """The tiny editor with both kinds of temporal layers, on 8 clips of 4 frames, 16x16 pixels.

    All kinds of condition dropout and gradient clipping are likely to occur.
    """
    dropout = dict(drop__text=0.2, drop__both=0.2, drop__video=0.2)
    defaults = dict(
        net=ONE_LEVEL, loader__batch=8, loader__frames=4, optim__grad_clip=0.1, **dropout
    )
    return tiny(output, **defaults | changes)


class Case:
    """A network none of whose temporal layers is zero, and a batch."""

    def __init__(self, home: Path, dtype: str):
        self.config = config = recipe(home, optim__dtype=dtype)
        folder, _ = init_state.plan_networks(config, lambda: run_folder.texts(config), home)
        tokenize = Tokenizer(
            load_tokenizer(home / "tokenizer"), folder.text_encoder.max_position_embeddings
        )
        with Loader(config.loader, config.data, "edit", tokenize, config.seed) as loader:
            self.batch = next(loader)[0]
        self.objective = make_objective(
            config, folder, tokenize(""), init_state.compute_dtype_of(config)
        )
        weights = init_state.load_initial_weights(
            config, folder, None, make_mesh(MeshConfig(), jax.devices()[:1])
        )
        self.trained, self.frozen = with_noise(weights.trained), jax.device_get(weights.frozen)

    def step(self, sizes: tuple[int, ...], accumulation: int = 1) -> tuple[dict, dict]:
        """One training step on a mesh (data, fsdp, frames).

        Returns what each device holds, and the host trees "metrics", "gradients", "params" and
        "ema" after the step.
        """
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
        config = dataclasses.replace(self.config.optim, accumulation=accumulation)
        optimizer = make_optimizer(config, self.config.steps)
        init = partial(new_state, optimizer=optimizer, config=config, seed=self.config.seed)
        shardings = sharding.tree_shardings(jax.eval_shape(init, self.trained), mesh)
        with jax.set_mesh(mesh):
            state = jax.jit(init, out_shardings=shardings)(self.trained)
            frozen = jax.device_put(self.frozen, sharding.tree_shardings(self.frozen, mesh))
            batch = sharding.put_batch(self.batch, mesh)
            schedule = learning_rate(config, self.config.steps)
            program = CompiledStep(self.objective, optimizer, config, schedule, shardings)
            program.compile(state, frozen, batch)
            state, metrics = program(state, frozen, batch)
        layout = {
            "clip": local_shape(batch["source"]),
            "serial": local_shape(batch["serial"]),
            "split": count_shares(state),
            "frozen": count_shares(frozen),
        }
        # After one step the first moment is (1 - b1) times the clipped gradient.
        results = {
            "metrics": metrics,
            "gradients": first_moment(state.opt_state),
            "params": state.params,
            "ema": state.ema,
        }
        return layout, jax.device_get(results)

    def float_dtypes(self) -> list[str]:
        """The dtypes of all floating-point arrays in the step's jaxpr.

        Scalars (the learning rate) are excluded.
        """
        config, steps = self.config.optim, self.config.steps
        optimizer = make_optimizer(config, steps)
        step = partial(
            train_step,
            objective=self.objective,
            optimizer=optimizer,
            config=config,
            schedule=learning_rate(config, steps),
        )
        init = partial(new_state, optimizer=optimizer, config=config, seed=0)
        state = jax.eval_shape(init, self.trained)
        dtypes = {
            x.aval.dtype
            for x in variables(jax.make_jaxpr(step)(state, self.frozen, self.batch).jaxpr)
            if getattr(x.aval, "ndim", 0)
        }
        return sorted(str(dtype) for dtype in dtypes if jax.dtypes.issubdtype(dtype, np.floating))


def variables(jaxpr):
    """All variables of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield from (*equation.invars, *equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from variables(inner)


def local_shape(x: jax.Array) -> list[int]:
    """The shape of one device's part."""
    return list(x.addressable_shards[0].data.shape)


def count_shares(tree) -> dict[str, int]:
    """The number of leaves of which a device holds each share, e.g. {"1/8": 40, "1/1": 2}."""
    shares = [f"1/{x.size // max(1, math.prod(local_shape(x)))}" for x in jax.tree.leaves(tree)]
    return {share: shares.count(share) for share in sorted(set(shares))}


def first_moment(opt_state):
    """Adam's first moment."""
    parts = jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    return next(part.mu for part in parts if hasattr(part, "mu"))


def with_noise(params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Adds noise to all parameters: temporal layers start at zero, which would hide errors."""
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)
        for name, leaf in params.items()
    }


def largest_error(actual: dict, expected: dict) -> tuple[float, str]:
    """The largest relative error in norm of any tensor, and the tensor's name."""
    norms = {name: float(np.linalg.norm(x)) for name, x in expected.items()}
    floor = NORM_FLOOR * max(norms.values())
    return max(
        (float(np.linalg.norm(actual[name] - x)) / max(norms[name], floor), name)
        for name, x in expected.items()
    )


def main(home: str, dtype: str, *meshes: str) -> None:
    """Prints the JSON lines described above."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    sharding.MIN_SHARDED_SIZE = MIN_SHARDED_SIZE
    case, expected = Case(Path(home), dtype), None
    print(json.dumps(case.float_dtypes()), flush=True)
    for mesh in meshes:
        sizes, _, accumulation = mesh.partition("/")
        layout, results = case.step(tuple(map(int, sizes.split(","))), int(accumulation or 1))
        expected = expected or results
        loss_error = abs(results["metrics"]["loss"] / expected["metrics"]["loss"] - 1)
        errors = {"loss": [float(loss_error), ""]}
        errors |= {name: largest_error(results[name], expected[name]) for name in results}
        print(json.dumps({"mesh": mesh, **layout, "errors": errors}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
