"""The training run, from config to finished pipeline, in the order in which things happen.

The weights come from the run's newest checkpoint, else from `--model`, else from a random
initialisation. A checkpoint that cannot be restored is an error, never a fresh start.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path

import jax

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import processes, runtime, sharding
from ivid2vid_jax.parallel.mesh import make_mesh
from ivid2vid_jax.training import pipeline_export, run_folder
from ivid2vid_jax.training.checkpoints import Checkpoints, has_checkpoint
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.hooks import Benchmark, Hooks, due_after
from ivid2vid_jax.training.metrics_log import Clock, MetricsLog, Trace
from ivid2vid_jax.training.metrics_reporter import MetricsReporter
from ivid2vid_jax.training.step import TrainState, learning_rate
from ivid2vid_jax.training.train_setup import TrainSetup, log_start, make_setup, make_state
from ivid2vid_jax.utils import storage
from ivid2vid_jax.utils.background import Background
from ivid2vid_jax.utils.progress import COMPILING, waiting
from ivid2vid_jax.utils.versions import versions

log = logging.getLogger(__name__)


def train(config: TrainConfig, benchmark: Benchmark | None = None) -> Path:
    """Trains to `config.steps` or until SIGTERM or Ctrl-C; called again, it resumes.

    Args:
        config: the training config.
        benchmark: measures the editor before the first step, and after the last one once its
            checkpoint is saved.

    Returns:
        The RUN folder on this machine.

    Raises:
        UserError: the config is invalid, the RUN folder holds a run with another config, a
            checkpoint is corrupt, or the loss is not finite.
    """
    config.check()
    run = storage.local_path(config.output)
    processes.initialize_distributed(config.distributed)
    runtime.enable_compilation_cache()
    mesh = make_mesh(config.mesh)
    sharding.check_batch(config.loader.batch, config.loader.frames, config.optim.accumulation, mesh)
    with (
        storage.mirror_run(config.output, writes=jax.process_index() == 0) as push,
        run_folder.locked_run(run, config, has_checkpoint(checkpoint_root(config, run))),
        jax.set_mesh(mesh),
        Checkpoints(checkpoint_root(config, run), config.checkpoint.keep) as checkpoints,
        Background() as background,
    ):
        checkpoint_config = run_folder.to_jsonable(config)
        config = dataclasses.replace(config, data=tuple(map(storage.fetch_folder, config.data)))
        start_step = resume_step(config, run, checkpoints)
        export_missing = pipeline_export.lacks_export(
            config.checkpoint, run, start_step, config.steps
        )
        benchmark_missing = benchmark is not None and benchmark.is_missing(config, run)
        done = start_step >= config.steps
        if done and not export_missing and not (benchmark_missing and start_step == config.steps):
            log.info(
                "%s: is at step %d of %d already; give more --steps to continue",
                run,
                start_step,
                config.steps,
            )
            return run

        setup = make_setup(config, run, mesh)
        state, shardings = make_state(setup, checkpoints, start_step)
        log_start(setup, state, start_step)
        meta = {
            "config": checkpoint_config,
            "origin": setup.weights.origin,
            "versions": versions(),
        }
        schedule = learning_rate(config.optim, config.steps)
        program = CompiledStep(
            setup.objective, setup.optimizer, config.optim, schedule, shardings, setup.counted
        )
        hooks = Hooks(setup, checkpoints, meta, push, background, benchmark)

        if export_missing:
            log.info("%s: writing the pipeline of step %d, which is missing", run, start_step)
            hooks.export_pipeline(start_step, state)
        if start_step == 0:
            hooks.run_benchmark("before", state)
        state = run_steps(setup, state, program, hooks, checkpoints, start_step)
        finished = int(jax.device_get(state.step)) == config.steps
        if benchmark_missing and finished and not checkpoints.stop.is_set():
            checkpoints.wait()  # a kill within the benchmark then loses no step
            hooks.run_benchmark("after", state)
    return run


def run_steps(
    setup: TrainSetup,
    state: TrainState,
    program: CompiledStep,
    hooks: Hooks,
    checkpoints: Checkpoints,
    start_step: int,
) -> TrainState:
    """The loop: step n is dispatched, then the metrics of step n-1 are read and logged.

    Returns the state after the last step.
    """
    config, run, mesh, frozen = setup.config, setup.run, setup.mesh, setup.weights.frozen
    clock = Clock(config.steps, start_step)
    trace = Trace(run / "profile", config.log.profile, start_step)
    metrics_log = MetricsLog(run, config.steps, start_step, active=jax.process_index() == 0)
    with (
        setup.loader as loader,
        metrics_log,
        contextlib.closing(trace),
        checkpoints.stop_on_interrupt(),
        jax.transfer_guard("disallow"),
    ):
        reporter = MetricsReporter(config, clock, metrics_log, program, checkpoints, mesh)
        for step in range(start_step + 1, config.steps + 1):
            trace(step)
            with clock.data():
                host_batch, position = next(loader)
            batch = sharding.put_batch(host_batch, mesh)
            if not program.is_compiled_for(batch):
                with clock.pause(), waiting(COMPILING):
                    program.compile(state, frozen, batch)
            state, metrics = program(state, frozen, batch)
            reporter(step, metrics, frame_count(batch))

            stop = checkpoints.preempted(step)
            if stop:
                log.info("finishing step %d and saving", step)
            due = due_after(config, step, stop)
            if due:
                reporter.flush()  # raises for a loss that is not finite, before anything is saved
            with clock.pause(), jax.transfer_guard("allow"):
                hooks.after_step(due, step, state, position, metrics_log)
            if stop:
                log.info("told to stop: saved at step %d; run the same command to resume", step)
                break
    return state


def checkpoint_root(config: TrainConfig, run: Path) -> Path | str:
    """The folder with the checkpoints: of a RUN in a bucket they go there directly."""
    return config.output if storage.is_remote(config.output) else run


def resume_step(config: TrainConfig, run: Path, checkpoints: Checkpoints) -> int:
    """The step of the checkpoint to resume from, 0 for a new run.

    `--resume N` sets newer checkpoints than N aside.
    """
    steps = checkpoints.steps()
    if config.resume is None:
        return steps[-1] if steps else 0
    if config.resume not in steps:
        available = ", ".join(map(str, steps)) or "no step"
        raise UserError(f"--resume {config.resume}: {run} has checkpoints of {available}")
    checkpoints.discard_after(config.resume)
    return config.resume


def frame_count(batch: dict[str, jax.Array]) -> int:
    """Number of frames of a batch's clips."""
    frames_per_clip = next(x.shape[1] for x in batch.values() if x.ndim == 5)
    return len(batch["serial"]) * frames_per_clip
