"""What happens between steps: checkpoints, pipeline export, validation, samples, benchmark.

Step times exclude it, but the devices wait. So only copies of the weights are made here; files of
the pipeline are written, and buckets filled, in the background.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.training import pipeline_export
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics_log import MetricsLog
from ivid2vid_jax.training.samples import Samples, single_process_mesh
from ivid2vid_jax.training.step import TrainState
from ivid2vid_jax.training.train_setup import TASK_VIEWS, TrainSetup
from ivid2vid_jax.training.validation import Validation
from ivid2vid_jax.utils.background import Background


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The measurement of an editor before and after its training.

    Attributes:
        measure: measure(config, run, when, pipeline); when: "before" or "after".
        is_missing: is_missing(config, run): whether the measurement after the last step is not
            complete.
    """

    measure: Callable[[TrainConfig, Path, str, Pipeline], None]
    is_missing: Callable[[TrainConfig, Path], bool]


@dataclasses.dataclass(frozen=True)
class Due:
    """What is due after a step."""

    validate: bool
    sample: bool
    save: bool
    export: bool

    def __bool__(self) -> bool:
        """Whether anything is due."""
        return self.validate or self.sample or self.save or self.export


def due_after(config: TrainConfig, step: int, stop: bool) -> Due:
    """What is due after a step. Everything is due after the last step; a stop always saves."""

    def is_due(interval: int, always: bool) -> bool:
        return interval > 0 and (step % interval == 0 or always)

    done = step == config.steps
    return Due(
        validate=is_due(config.log.eval_every, done and not stop),
        sample=is_due(config.log.sample_every, done and not stop),
        save=is_due(config.checkpoint.every, done or stop),
        export=pipeline_export.is_export_due(config.checkpoint, step, config.steps),
    )


class Hooks:
    """Runs what is due between steps, outside of the step time."""

    def __init__(
        self,
        setup: TrainSetup,
        checkpoints: Checkpoints,
        checkpoint_meta: dict,
        push: Callable[[], None],
        background: Background,
        benchmark: Benchmark | None,
    ):
        """Prepares validation and samples.

        Args:
            setup: of the run.
            checkpoints: of the run.
            checkpoint_meta: stored with every checkpoint.
            push: copies the RUN folder to its bucket, if it is in one.
            background: writes the pipeline and pushes.
            benchmark: measures the editor before and after training.
        """
        self.setup, self.config, self.run = setup, setup.config, setup.run
        self.frozen = setup.weights.frozen
        self.checkpoints, self.checkpoint_meta = checkpoints, checkpoint_meta
        self.push_now, self.background, self.benchmark = push, background, benchmark
        self.validation = Validation(
            self.config,
            setup.tokenize,
            TASK_VIEWS[self.config.task],
            setup.objective,
            setup.mesh,
            setup.cache,
        )
        self.samples = Samples(self.config, self.run, setup.folder)

    def after_step(
        self, due: Due, step: int, state: TrainState, position: dict, metrics_log: MetricsLog
    ) -> None:
        """Does what is due after a step. position: of the loader, stored in the checkpoint."""
        if due.validate:
            losses = self.validation(pipeline_export.ema_params(state), self.frozen)
            metrics_log.write(step, losses, kind="validation")
        if due.sample:
            for sheet in self.samples(step, pipeline_export.ema_params(state), self.frozen):
                metrics_log.images(step, "samples", sheet)
        if due.save:
            self.checkpoints.save(step, state, position, self.checkpoint_meta)
            if self.config.checkpoint.wait:
                self.checkpoints.wait()
        if due.export:
            self.export_pipeline(step, state)
        if due.save or due.export:
            self.push()

    def push(self) -> None:
        """Copies the RUN folder to its bucket, in the background."""
        self.background.start("push", self.push_now)

    def export_pipeline(self, step: int, state: TrainState) -> None:
        """Writes RUN/pipeline with the EMA weights, in the background.

        Waits for the previous export first, so that host memory holds the weights of one only.
        """
        self.background.wait()
        setup, trained = self.setup, pipeline_export.ema_params(state)
        folder = self.validation.calibrated(setup.folder, trained, self.frozen)
        weights = pipeline_export.Weights.collect(trained, self.frozen, setup.source)
        if jax.process_index() == 0:
            self.background.start(
                "export",
                lambda: pipeline_export.write_pipeline(
                    self.run, step, folder, setup.source, weights
                ),
            )

    def run_benchmark(self, when: str, state: TrainState) -> None:
        """Runs the benchmark, if there is one, with the EMA weights; when: "before" or "after"."""
        if self.benchmark is None:
            return
        pipe = self.samples.pipeline(pipeline_export.ema_params(state), self.frozen)
        if pipe is not None:
            with single_process_mesh():
                self.benchmark.measure(self.config, self.run, when, pipe)
            self.push()
