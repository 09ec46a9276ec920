"""Tiny training runs for tests: their configs, commands, processes and files."""

import json
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from ivid2vid_jax import train as command
from ivid2vid_jax.training.checkpoints import named_leaves
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics_log import read_metrics
from tests.support.command import run_command
from tests.support.tiny_run import ONE_LEVEL, tiny

ROOT = Path(__file__).parents[2]

# Metrics that depend on the machine's speed and memory.
MEASURED = {
    "time",
    "step_time",
    "data_wait",
    "eta",
    "clips_per_s",
    "frames_per_s_per_chip",
    "model_flops_per_s",
    "host_mib",
}

# The autoencoder compiles fastest; with a constant learning rate the program does not depend on the
# number of steps.
CHEAP = dict(
    task="autoencoder",
    net=ONE_LEVEL,
    optim__trainable=("vae",),
    optim__schedule="constant",
    steps=8,
    checkpoint__keep=100,
)
WATCHED = dict(log__eval_every=4, log__sample_every=8, checkpoint__pipeline=True)


def cheap(run, **changes) -> TrainConfig:
    """A run that trains an autoencoder; changes: as for `tiny`."""
    return tiny(run, **CHEAP | changes)


def write_recipe(folder: Path, run: Path, changes: dict | None = None) -> Path:
    """Writes a recipe file with `cheap(run, **changes)`; returns its path."""
    path = folder / "recipe.py"
    path.write_text(
        "from tests.support.train_runs import cheap\n\n"
        f"config = cheap({str(run)!r}, **{changes or {}!r})\n"
    )
    return path


def train_command(capsys, *argv) -> tuple[int, str]:
    """Runs `python -m ivid2vid_jax.train` in this process -> (exit code, stderr)."""
    return run_command(capsys, TrainConfig, command.run, *argv, recipe=command.recipe)[:2]


def file_contents(folder: Path, *excluded: str) -> dict[str, bytes]:
    """Path -> content of every file in a folder, without the files and folders named `excluded`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(name in path.parts for name in excluded)
    }


def saved_state(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every leaf of a checkpoint's state, read by orbax alone."""
    tree = ocp.PyTreeCheckpointer().restore(run / "checkpoints" / str(step) / "state")
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def saved_ema(run: Path, step: int) -> dict[str, np.ndarray]:
    """The averaged weights of a checkpoint, by name."""
    return {
        name.removeprefix("ema/"): leaf
        for name, leaf in saved_state(run, step).items()
        if name.startswith("ema/")
    }


def loader_position(run: Path, step: int) -> dict:
    """The position of the data loader in a checkpoint."""
    return json.loads((run / "checkpoints" / str(step) / "data" / "metadata").read_text())


def reproducible_metrics(run: Path) -> list[dict]:
    """The training metrics without those that depend on the machine."""
    return [
        {name: value for name, value in record.items() if name not in MEASURED}
        for record in read_metrics(run, "train")
    ]


def complete_steps(run: Path) -> list[int]:
    """The steps of complete checkpoints: orbax renames a folder when it is complete."""
    return sorted(
        int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()
    )


def assert_same_checkpoint(run: Path, other: Path, step: int) -> None:
    """Asserts that two runs' checkpoints of a step are bitwise equal, the loader's position too."""
    one, two = saved_state(run, step), saved_state(other, step)
    parts = {"step", "params", "opt_state", "ema", "key"}
    assert one.keys() == two.keys() and {name.split("/")[0] for name in one} == parts
    assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []
    assert int(one["step"]) == step
    assert loader_position(run, step) == loader_position(other, step)
