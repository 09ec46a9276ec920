"""Reads the metrics of a step while the next one runs; checks and logs them."""

import jax
import numpy as np
from jax.sharding import Mesh

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import chips
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics_log import Clock, MetricsLog, memory

MEMORY_INTERVAL = 20  # steps between two measurements of memory


class MetricsReporter:
    """reporter(step, metrics, frames) logs the step before; `flush` logs the last one.

    So the host waits for a step only after the next one is dispatched, and devices never idle.
    """

    def __init__(
        self,
        config: TrainConfig,
        clock: Clock,
        metrics_log: MetricsLog,
        program: CompiledStep,
        checkpoints: Checkpoints,
        mesh: Mesh,
    ):
        """checkpoints: named in the error for a non-finite loss."""
        self.config, self.clock, self.metrics_log = config, clock, metrics_log
        self.program, self.checkpoints = program, checkpoints
        self.devices = mesh.size
        # operations per second of all chips; 0 if it is unknown
        self.peak = (chips.peak_flops(mesh.devices.flat[0]) or 0.0) * self.devices
        self.pending: tuple[int, dict, int] | None = None

    def __call__(self, step: int, metrics: dict[str, jax.Array], frames: int) -> None:
        """Stores the metrics of `step`, which may still run, and logs those of the step before."""
        previous, self.pending = self.pending, (step, metrics, frames)
        if previous:
            self.log_step(*previous)

    def flush(self) -> None:
        """Logs the stored step."""
        if self.pending:
            self.log_step(*self.pending)
            self.pending = None

    def log_step(self, step: int, metrics: dict[str, jax.Array], frames: int) -> None:
        """Logs a step. Raises UserError for metrics that are not finite."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.check_finite(step, values)
        timing = self.clock.tick(step)
        step_time = timing["step_time"]
        values |= timing | {
            "clips_per_s": self.config.loader.batch / step_time,
            "frames_per_s_per_chip": frames / step_time / self.devices,
            "model_flops_per_s": self.program.flops / step_time,
        }
        if self.peak:
            values["mfu"] = values["model_flops_per_s"] / self.peak
        mib = memory() if step % MEMORY_INTERVAL == 0 else {}
        self.metrics_log.write(step, values | {f"{name}_mib": value for name, value in mib.items()})
        self.metrics_log.line(step, values)

    def check_finite(self, step: int, values: dict[str, float]) -> None:
        """Raises UserError that names the values that are not finite and the last checkpoint."""
        bad = {name: value for name, value in values.items() if not np.isfinite(value)}
        if not bad:
            return
        steps = self.checkpoints.steps()
        last = (
            f"the last good checkpoint is of step {steps[-1]}"
            if steps
            else "there is no checkpoint yet"
        )
        raise UserError(
            f"{self.config.output}, step {step}: "
            f"{', '.join(f'{name} {value}' for name, value in bad.items())}: training diverged; "
            f"{last}; lower --optim.lr or --optim.grad-clip, or compute in float32 (--optim.dtype)"
        )
