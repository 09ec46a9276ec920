"""One training step on several meshes, compared with the first of them; and recipes for runs of several processes.

A script, for the number of devices is settled before JAX starts:

    JAX_NUM_CPU_DEVICES=8 NPROC=16 python -m tests.support.sharded_run FOLDER float32 1,1,1 8,1,1 2,2,2 2,2,2/2

Meshes are data,fsdp,frames[/micro-batches]. FOLDER is empty, or that of a call before, whose tokenizer is used again.
Prints a JSON line with `Case.floats`, then one a mesh: what `Case.step` tells, and "errors" against the first mesh, see `worst`.
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
from ivid2vid_jax.inference.pipeline import load_tokenizer
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.training import init_state, run_folder
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.loop import Tokenizer
from ivid2vid_jax.training.objectives import make_objective
from ivid2vid_jax.training.step import (
    learning_rate,
    make_optimizer,
    new_state,
    train_step,
)
from tests.support.tiny_run import NET, tiny

SMALL = 8  # elements, in the place of `sharding.SMALL`, so that a tiny net's leaves are split
FLOOR = 1e-6  # of the largest norm of all tensors: smaller ones are zero in exact arithmetic (a bias before a norm) and hold rounding alone

ONE_LEVEL = dataclasses.replace(
    NET,
    unet=UNetConfig(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
        sample_size=8,
        num_frames=4,
    ),
)


def recipe(output, **changes) -> TrainConfig:
    """The tiny editor with both kinds of temporal layers, 8 clips of 4 frames of 16 x 16 pixels; all kinds of dropout and clipping are seen to act."""
    likely = dict(drop__text=0.2, drop__both=0.2, drop__video=0.2, optim__clip=0.1)
    return tiny(
        output, **dict(net=ONE_LEVEL, loader__batch=8, loader__frames=4, **likely) | changes
    )


class Case:
    """A net with no temporal layer at zero, and a batch."""

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
        begun = init_state.load_initial_weights(
            config, folder, None, make_mesh(MeshConfig(), jax.devices()[:1])
        )
        self.trained, self.frozen = stirred(begun.trained), jax.device_get(begun.frozen)

    def step(self, sizes: tuple[int, ...], accumulation: int = 1) -> tuple[dict, dict]:
        """What there is to tell of a mesh's shards, and the host trees "metrics", "gradients", "params" and "ema" after one step."""
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
        config = dataclasses.replace(self.config.optim, accumulation=accumulation)
        optimizer = make_optimizer(config, self.config.steps)
        make = partial(new_state, optimizer=optimizer, config=config, seed=self.config.seed)
        placed = sharding.tree_shardings(jax.eval_shape(make, self.trained), mesh)
        with jax.set_mesh(mesh):
            state = jax.jit(make, out_shardings=placed)(self.trained)
            frozen = jax.device_put(self.frozen, sharding.tree_shardings(self.frozen, mesh))
            batch = sharding.put_batch(self.batch, mesh)
            program = CompiledStep(
                self.objective, optimizer, config, learning_rate(config, self.config.steps), placed
            )
            program.compile(state, frozen, batch)
            state, metrics = program(state, frozen, batch)
        told = {
            "clip": held(batch["source"]),
            "serial": held(batch["serial"]),
            "split": shares(state),
            "frozen": shares(frozen),
        }
        # after one step the first moment is (1 - b1) times the clipped gradient
        return told, jax.device_get(
            {
                "metrics": metrics,
                "gradients": first_moment(state.opt_state),
                "params": state.params,
                "ema": state.ema,
            }
        )

    def floats(self) -> list[str]:
        """The types of all floating arrays in the step's program, before any compiler; scalars (the learning rate) apart."""
        config, steps = self.config.optim, self.config.steps
        optimizer = make_optimizer(config, steps)
        step = partial(
            train_step,
            objective=self.objective,
            optimizer=optimizer,
            config=config,
            schedule=learning_rate(config, steps),
        )
        state = jax.eval_shape(
            partial(new_state, optimizer=optimizer, config=config, seed=0), self.trained
        )
        found = {
            x.aval.dtype
            for x in variables(jax.make_jaxpr(step)(state, self.frozen, self.batch).jaxpr)
            if getattr(x.aval, "ndim", 0)
        }
        return sorted(str(dtype) for dtype in found if jax.dtypes.issubdtype(dtype, np.floating))


def variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from (*equation.invars, *equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from variables(inner)


def held(x: jax.Array) -> list[int]:
    """The shape that one device holds."""
    return list(x.addressable_shards[0].data.shape)


def shares(tree) -> dict[str, int]:
    """How many leaves are held to which share by a device: {"1/8": 40, "1/1": 2}."""
    ways = [f"1/{x.size // max(1, math.prod(held(x)))}" for x in jax.tree.leaves(tree)]
    return {share: ways.count(share) for share in sorted(set(ways))}


def first_moment(opt_state):
    return next(
        part.mu
        for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    )


def stirred(params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """With noise on all: temporal layers start at zero, where a fault in them would not show."""
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)
        for name, leaf in params.items()
    }


def worst(found: dict, wanted: dict) -> tuple[float, str]:
    """The largest relative error in norm of any tensor, and its name."""
    norms = {name: float(np.linalg.norm(x)) for name, x in wanted.items()}
    floor = FLOOR * max(norms.values())
    return max(
        (float(np.linalg.norm(found[name] - x)) / max(norms[name], floor), name)
        for name, x in wanted.items()
    )


def main(home: str, dtype: str, *meshes: str) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    sharding.MIN_SHARDED_SIZE = SMALL
    case, first = Case(Path(home), dtype), None
    print(json.dumps(case.floats()), flush=True)
    for mesh in meshes:
        sizes, _, accumulation = mesh.partition("/")
        told, out = case.step(tuple(map(int, sizes.split(","))), int(accumulation or 1))
        first = first or out
        loss = abs(out["metrics"]["loss"] / first["metrics"]["loss"] - 1)
        errors = {"loss": [float(loss), ""]} | {name: worst(out[name], first[name]) for name in out}
        print(json.dumps({"mesh": mesh, **told, "errors": errors}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
