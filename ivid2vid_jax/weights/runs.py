"""Training runs as models: which folders are runs, and how a run's pipeline is written."""

from pathlib import Path

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import storage
from ivid2vid_jax.utils.json_files import read_json


def is_run(path: Path) -> bool:
    """Whether a folder is the output of a training run: its config.json has a task."""
    file = path / "config.json"
    return file.is_file() and {"task", "net", "optim"} <= read_json(file).keys()


def last_step(run: str | Path) -> int | None:
    """The step of the newest checkpoint of a run, local or in a bucket; None if there is none."""
    names = storage.list_folder(run, "checkpoints")
    return max((int(name) for name in names if name.isdecimal()), default=None)


def export_command(run: str | Path) -> str:
    """The command that writes RUN/pipeline from the newest checkpoint."""
    return f"python -m ivid2vid_jax.convert pipeline {run}"


def missing_pipeline(run: str | Path) -> UserError:
    """The error for a run, local or in a bucket, without RUN/pipeline."""
    step = last_step(run)
    if step is None:
        return UserError(
            f"{run}: is a training run without a checkpoint; run its training command again"
        )
    return UserError(
        f"{run}: is a training run whose pipeline is not written yet, which comes after the last "
        f"step; write that of step {step}: {export_command(run)}"
    )
