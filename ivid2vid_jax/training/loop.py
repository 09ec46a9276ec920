"""The training run, from config to finished pipeline, in the order in which things happen.

Where the weights come from: this run's own newest checkpoint; else `model`; else scratch. A checkpoint that cannot be restored is an
error, never a fresh start.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.inference.pipeline import Pipeline, load_tokenizer
from ivid2vid_jax.parallel import processes, runtime, sharding
from ivid2vid_jax.parallel.mesh import make_mesh
from ivid2vid_jax.training import init_state as starting
from ivid2vid_jax.training import pipeline_export, run_folder
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics_log import Clock, MetricsLog, Trace, memory
from ivid2vid_jax.training.objectives import make_objective as make_objective
from ivid2vid_jax.training.samples import Samples, single_process_mesh
from ivid2vid_jax.training.step import learning_rate, make_optimizer, new_state
from ivid2vid_jax.training.validation import Validation
from ivid2vid_jax.utils import storage
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.versions import versions

log = logging.getLogger(__name__)

VIEWS = {"edit": "edit", "text_to_image": "caption", "autoencoder": "pixels", "clip": "caption"}


Benchmark = Callable[[TrainConfig, Path, str, Pipeline], None]


def train(config: TrainConfig, benchmark: Benchmark | None = None) -> Path:
    """Trains to `config.steps`, or until it is told to stop, and returns the RUN folder; called again it goes on.

    judge(config, run, "before" or "after", pipeline) sees the editor before the first step and after the last.
    Raises UserError for a config that cannot be run, a run of another config, a damaged checkpoint, and a loss that is no number.
    """
    config.check()
    run = storage.local_path(config.output)

    # ---- processes, devices, the run folder
    processes.initialize_distributed(config.distributed)
    runtime.enable_compilation_cache()
    mesh = make_mesh(config.mesh)
    sharding.warn_if_uneven(config.loader.batch, config.optim.accumulation, mesh)
    kept = config.output if storage.is_remote(config.output) else run
    mirror = storage.mirror_run(config.output, writes=jax.process_index() == 0)
    with (
        mirror as push,
        run_folder.locked_run(run, config),
        jax.set_mesh(mesh),
        Checkpoints(kept, config.checkpoint.keep) as checkpoints,
    ):
        asked, config = (
            config,
            dataclasses.replace(config, data=tuple(map(storage.fetch_folder, config.data))),
        )
        at = resume_from(config, run, checkpoints)
        stale = (
            config.checkpoint.pipeline and bool(at) and pipeline_export.exported_step(run) != at
        )  # killed between a checkpoint and its pipeline
        if at >= config.steps and not stale:
            log.info(
                "%s: is at step %d of %d already; give more --steps to go on", run, at, config.steps
            )
            return run

        # ---- nets, objective, state
        folder, source = starting.plan_networks(config, lambda: run_folder.texts(config), run)
        tokenize = Tokenizer(load_tokenizer(folder.tokenizer), folder.text_length)
        begun = starting.load_initial_weights(config, folder, source, mesh)
        objective = make_objective(
            config,
            folder,
            tokenize(""),
            starting.compute_dtype_of(config),
            frozenset(begun.trained),
        )
        optimizer = make_optimizer(config.optim, config.steps)

        def make(params):
            return new_state(params, optimizer, config.optim, config.seed)

        placed = sharding.tree_shardings(jax.eval_shape(make, begun.trained), mesh)
        latents = cache_keys(config, folder, begun.trained) if config.loader.cached else ()
        loader = Loader(
            config.loader, config.data, VIEWS[config.task], tokenize, config.seed, cache=latents
        )
        if at:
            abstract = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                jax.eval_shape(make, begun.trained),
                placed,
            )
            begun.trained = {}  # room for what is restored
            state, position, meta = checkpoints.restore(at, abstract)
            run_folder.check_origin(run, meta["origin"], begun.origin)
            loader.restore(position)
        else:
            state, position = jax.jit(make, out_shardings=placed)(begun.trained), loader.state
        log_start(run, config, mesh, state, begun.frozen, at)

        # ---- what happens on the way
        meta = {
            "config": run_folder.to_jsonable(asked),
            "origin": begun.origin,
            "versions": versions(),
        }
        program = CompiledStep(
            objective, optimizer, config.optim, learning_rate(config.optim, config.steps), placed
        )
        validation = Validation(config, tokenize, VIEWS[config.task], objective, mesh)
        samples = Samples(config, run, folder)

        def write_pipeline(step: int) -> None:
            weights = pipeline_export.ema_params(state)
            pipeline_export.write_pipeline(
                run,
                step,
                validation.calibrated(folder, weights, begun.frozen),
                source,
                weights,
                begun.frozen,
            )

        def judged(when: str) -> None:
            pipe = (
                samples.pipeline(pipeline_export.ema_params(state), begun.frozen)
                if benchmark
                else None
            )
            if pipe:
                with single_process_mesh():
                    benchmark(config, run, when, pipe)

        if stale:
            log.info(
                "%s: writing the pipeline of step %d, which an interruption kept from being written",
                run,
                at,
            )
            write_pipeline(at)
        if not at:
            judged("before")
        clock = Clock(config.steps, at)
        trace = Trace(run / "profile", config.log.profile, at)
        logging_to = MetricsLog(run, config.steps, at, active=jax.process_index() == 0)
        with (
            loader,
            logging_to as metrics_log,
            contextlib.closing(trace),
            jax.transfer_guard("disallow"),
        ):
            reporter = MetricsReporter(config, clock, metrics_log, program, checkpoints, mesh)

            # ---- the loop: step n is dispatched, then step n-1 is read and told
            for step in range(at + 1, config.steps + 1):
                trace(step)
                with clock.data():
                    batch, position = next(loader)
                batch = sharding.put_batch(batch, mesh)
                if not program.is_compiled_for(batch):
                    with clock.pause():
                        program.compile(state, begun.frozen, batch)
                state, metrics = program(state, begun.frozen, batch)
                reporter(step, metrics, len(batch["serial"]) * clip_length(batch))

                stop = checkpoints.preempted(step)
                last = stop or step == config.steps
                save = last or step % config.checkpoint.every == 0
                validate, sample = (
                    is_due(step, interval, last and not stop)
                    for interval in (config.log.eval_every, config.log.sample_every)
                )
                if save or validate or sample:
                    reporter.flush()
                with clock.pause(), jax.transfer_guard("allow"):
                    if validate:
                        metrics_log.write(
                            step,
                            validation(pipeline_export.ema_params(state), begun.frozen),
                            kind="validation",
                        )
                    if sample:
                        for picture in samples(
                            step, pipeline_export.ema_params(state), begun.frozen
                        ):
                            metrics_log.images(step, "samples", picture)
                    if step == config.steps:
                        judged("after")
                    if save:
                        checkpoints.save(step, state, position, meta)
                        if config.checkpoint.wait:
                            checkpoints.wait()
                        if config.checkpoint.pipeline:
                            write_pipeline(step)
                        push()
                if stop:
                    log.info("told to stop: saved at step %d; run the same command to go on", step)
                    break
    return run


def cache_keys(config: TrainConfig, folder, trained) -> tuple[str, ...]:
    """The latent caches of this model and these cuts. Raises UserError where what is cached would be trained."""
    from ivid2vid_jax.training.encode_latents import latent_cache_keys

    if config.model is None or config.task in ("autoencoder", "clip"):
        raise UserError("--loader.cached needs --model, whose frozen autoencoder made the cache")
    return latent_cache_keys(
        folder,
        config.loader,
        text=config.task == "edit"
        and not any(name.startswith("text_encoder/") for name in trained),
    )


def is_due(step: int, interval: int, last: bool) -> bool:
    """Whether something that happens every `interval` steps (0: never) is due."""
    return interval > 0 and (step % interval == 0 or last)


def clip_length(batch: dict) -> int:
    """Frames of the batch's clips."""
    return next(x.shape[1] for x in batch.values() if x.ndim == 5)


def resume_from(config: TrainConfig, run: Path, checkpoints: Checkpoints) -> int:
    """The step of the checkpoint to go on from, 0 for a fresh run. One that was asked for sets the newer ones aside."""
    there = checkpoints.steps()
    if config.resume is None:
        return there[-1] if there else 0
    if config.resume not in there:
        raise UserError(
            f"--resume {config.resume}: {run} holds checkpoints of the steps {', '.join(map(str, there)) or 'none'}"
        )
    checkpoints.discard_after(config.resume)
    return config.resume


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A text as int32 [K] token ids, padded and cut to the text encoder's length. It pickles, for the loader's workers."""

    tokenizer: object
    length: int

    def __call__(self, text: str) -> np.ndarray:
        return self.tokenizer(
            [text],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="np",
        )["input_ids"][0].astype(np.int32)


class MetricsReporter:
    """Reads the metrics of the step before the one that was just dispatched, checks and logs them."""

    def __init__(
        self,
        config: TrainConfig,
        clock: Clock,
        metrics_log: MetricsLog,
        program: CompiledStep,
        checkpoints: Checkpoints,
        mesh,
    ):
        self.config, self.clock, self.log_step, self.program, self.checkpoints = (
            config,
            clock,
            metrics_log,
            program,
            checkpoints,
        )
        self.devices = mesh.size
        self.waiting = None

    def __call__(self, step: int, metrics: dict, frames: int) -> None:
        """Takes the metrics of `step`, still being computed, and tells those of the step before."""
        before, self.waiting = self.waiting, (step, metrics, frames)
        if before:
            self.log_step(*before)

    def flush(self) -> None:
        """Tells the step that is waiting, before anything of it is kept."""
        if self.waiting:
            self.log_step(*self.waiting)
            self.waiting = None

    def log_step(self, step: int, metrics: dict, frames: int) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(np.isfinite(value) for value in values.values()):
            bad = ", ".join(
                f"{name} {value}" for name, value in values.items() if not np.isfinite(value)
            )
            saved = self.checkpoints.steps()
            kept = (
                f"the last good checkpoint is of step {saved[-1]}"
                if saved
                else "there is no checkpoint yet"
            )
            ways = "lower --optim.lr, clip harder (--optim.clip), or compute in float32 (--optim.dtype)"
            raise UserError(
                f"{self.config.output}, step {step}: {bad}: training has broken down; {kept}; {ways}"
            )
        pace = self.clock.tick(step)
        values |= pace | {
            "clips_per_s": self.config.loader.batch / pace["step_time"],
            "frames_per_s_per_chip": frames / pace["step_time"] / self.devices,
            "model_flops_per_s": self.program.flops / pace["step_time"],
        }
        self.log_step.write(
            step,
            values
            | ({f"{name}_mib": mib for name, mib in memory().items()} if step % 20 == 0 else {}),
        )
        self.log_step.line(step, values)


def log_start(run: Path, config: TrainConfig, mesh, state, frozen: dict, at: int) -> None:
    """One line on what is about to happen."""
    if jax.process_index() == 0:
        trained, still = (
            sum(x.size for x in tree.values()) / 1e6 for tree in (state.params, frozen)
        )
        shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        begin = f"going on from step {at}" if at else f"from {config.model or 'scratch'}"
        log.info(
            "%s: %s, %s; %.2f M parameters trained, %.2f M frozen; %s",
            run,
            config.task,
            begin,
            trained,
            still,
            shape,
        )
        log.info(
            "config: %s",
            json.dumps(run_folder.to_jsonable(config), default=str)[:100]
            + " ... (RUN/config.json)",
        )
