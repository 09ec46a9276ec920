"""The training step as compiled programs: one for each shape of batch, compiled before it runs, so that nothing ever recompiles."""

from functools import partial
from typing import Any

import jax

from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.training import flops
from ivid2vid_jax.training.config import OptimConfig
from ivid2vid_jax.training.step import TrainState, train_step


class CompiledStep:
    """program(state, frozen, batch) -> (state, metrics); the state is donated.

    flops: of one step of the shape that ran last, over all devices, by the compiler's own count and `training/flops.py` for what that leaves out;
    a multiply-add is two.
    """

    def __init__(self, objective, optimizer, config: OptimConfig, schedule, placed: TrainState):
        step = partial(
            train_step, objective=objective, optimizer=optimizer, config=config, schedule=schedule
        )
        self.step = runtime.jit(step, donate_argnums=0, out_shardings=(placed, None))
        self.programs: dict[Any, tuple] = {}
        self.flops = 0.0

    def is_compiled_for(self, batch: dict) -> bool:
        return shapes(batch) in self.programs

    def compile(self, state: TrainState, frozen: dict, batch: dict) -> None:
        """Compiles for the batch's shapes."""
        traced = self.step.trace(state, frozen, batch)
        compiled = traced.lower().compile()
        chips = jax.device_count()
        self.programs[shapes(batch)] = (
            compiled,
            chips * flops.program_flops(traced, compiled, chips)[0],
        )

    def __call__(self, state: TrainState, frozen: dict, batch: dict):
        program, self.flops = self.programs[shapes(batch)]
        return program(state, frozen, batch)


def shapes(batch: dict) -> tuple:
    return tuple((name, x.shape) for name, x in sorted(batch.items()))
