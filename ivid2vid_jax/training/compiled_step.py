"""The training step as compiled programs, one per batch shape; nothing recompiles in the loop."""

from functools import partial
from typing import Any

import jax
import optax

from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.training import flops
from ivid2vid_jax.training.config import OptimConfig
from ivid2vid_jax.training.objectives import Objective
from ivid2vid_jax.training.step import TrainState, train_step


class CompiledStep:
    """step(state, frozen, batch) -> (state, metrics); `state` is donated.

    Attributes:
        flops: floating-point operations of the model in the last step that ran, over all devices:
            those of its matrix products and convolutions, forward and backward, without what
            rematerialisation computes again. A multiply-add counts as two.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        config: OptimConfig,
        schedule: optax.Schedule,
        placed: TrainState,
        counted: Objective | None = None,
    ):
        """Prepares the step.

        Args:
            objective: the loss.
            optimizer: updates the trained weights.
            config: for accumulation and EMA.
            schedule: the learning rate.
            placed: the state's shardings.
            counted: the same loss without rematerialisation, whose operations are counted; None
                counts those of `objective`.
        """
        step = partial(train_step, optimizer=optimizer, config=config, schedule=schedule)
        self.step = runtime.jit(
            partial(step, objective=objective), donate_argnums=0, out_shardings=(placed, None)
        )
        self.counted = partial(step, objective=counted or objective)
        self.programs: dict[tuple, tuple[jax.stages.Compiled, float]] = {}
        self.flops = 0.0

    def is_compiled_for(self, batch: dict[str, Any]) -> bool:
        """Whether a program for the batch's shapes exists."""
        return batch_shapes(batch) in self.programs

    def compile(self, state: TrainState, frozen: dict, batch: dict[str, Any]) -> None:
        """Compiles the step for the batch's shapes."""
        compiled = self.step.trace(state, frozen, batch).lower().compile()
        operations = flops.count_flops(self.counted, state, frozen, batch).useful
        self.programs[batch_shapes(batch)] = (compiled, float(operations))

    def __call__(self, state: TrainState, frozen: dict, batch: dict[str, Any]):
        """Runs one step; the batch's shapes must be compiled."""
        program, self.flops = self.programs[batch_shapes(batch)]
        return program(state, frozen, batch)


def batch_shapes(batch: dict[str, Any]) -> tuple:
    """The names and shapes of a batch, hashable."""
    return tuple((name, x.shape) for name, x in sorted(batch.items()))
