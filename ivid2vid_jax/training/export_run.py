"""Writes the pipeline of a run that was stopped before its last step."""

import dataclasses
import logging
from pathlib import Path

import jax

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.mesh import build_mesh
from ivid2vid_jax.training import run_folder
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.hooks import Hooks
from ivid2vid_jax.training.train_setup import make_setup, make_state
from ivid2vid_jax.utils import storage
from ivid2vid_jax.utils.background import Background
from ivid2vid_jax.weights import runs

log = logging.getLogger(__name__)


def export_run(output: str) -> tuple[Path, int]:
    """Writes RUN/pipeline from the newest checkpoint, in one process on its own devices.

    Args:
        output: the RUN folder, local or in a bucket. Its initial weights and data must still be
            where they were.

    Returns:
        RUN/pipeline on this machine, and the step.

    Raises:
        UserError: the folder is no training run or has no checkpoint, or another process trains
            there.
    """
    runtime.enable_compilation_cache()
    run = storage.local_path(output)
    with storage.mirror_run(output, writes=True) as push:
        if not runs.is_run(run):
            raise UserError(f"{output}: is not the folder of a training run")
        config = dataclasses.replace(run_folder.read_config(run), resume=None)
        if (step := runs.last_step(output)) is None:
            raise runs.missing_pipeline(output)
        devices = jax.local_devices()
        mesh = build_mesh((1, len(devices), 1), devices)
        with (
            run_folder.locked_run(run, config, has_checkpoint=True),
            jax.set_mesh(mesh),
            Checkpoints(
                output if storage.is_remote(output) else run, config.checkpoint.keep
            ) as checkpoints,
            Background() as background,
        ):
            data = tuple(map(storage.fetch_folder, config.data))
            setup = make_setup(dataclasses.replace(config, data=data), run, mesh)
            state, _ = make_state(setup, checkpoints, step)
            Hooks(setup, checkpoints, {}, push, background, None).export_pipeline(step, state)
    return run / "pipeline", step
