"""`python -m ivid2vid_jax.train`: train an editor, or the nets it is made of. Run the same command again to go on.

    python -m ivid2vid_jax.train                                            # the shapes world
    python -m ivid2vid_jax.train --config configs/sd15.py --data DIR --output RUN
"""

import dataclasses
import difflib
import runpy
from pathlib import Path

from ivid2vid_jax.commands import main
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.training.config import TrainConfig, check_types


def recipe(path: Path) -> TrainConfig:
    """The `config` of a recipe file. Raises UserError for a file that is none, naming the nearest right key where one is misspelt."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else [], 1)
        raise UserError(f"--config {path}: no such file{f'; did you mean {path.with_name(near[0])}?' if near else ''}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except TypeError as error:  # an unknown keyword
        raise UserError(f"--config {path}: {error}{nearest(str(error))}") from error
    except Exception as error:
        raise UserError(f"--config {path}: cannot be run ({type(error).__name__}: {error})") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"--config {path}: says no `config = TrainConfig(...)`")
    try:
        check_types(config)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    return config


def nearest(message: str) -> str:
    """"; did you mean ...?" for an error that quotes an unknown keyword."""
    word = message.rpartition("'")[0].rpartition("'")[2]
    known = {field.name for cls in config_classes(TrainConfig) for field in dataclasses.fields(cls)}
    near = difflib.get_close_matches(word, sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def config_classes(cls: type) -> list[type]:
    """A config's class and those of its parts."""
    parts = [field.type for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.type)]
    return [cls] + [each for part in parts for each in config_classes(part)]


def run(config: TrainConfig) -> None:
    """Trains, and says what can be done with the result."""
    from ivid2vid_jax.evaluation import learned
    from ivid2vid_jax.training.loop import train

    learned.check(config)
    done = train(config, learned.judge if config.log.judge else None)
    if config.log.judge:
        print(learned.table(done))
    if config.task == "edit" and (done / "pipeline").is_dir():
        print(f'wrote {done}; edit with: python -m ivid2vid_jax.edit --model {done} --video in.mp4 --instruction "..." --output out.mp4')


if __name__ == "__main__":
    main(TrainConfig, run, recipe)
