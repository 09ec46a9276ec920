"""The RUN folder's config.json: written once, compared ever after; and one run a folder at a time."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from ivid2vid_jax.data import shapes
from ivid2vid_jax.training.config import RENAMED, TrainConfig
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.utils.locks import file_lock

# What may change between two starts of a run: how it is computed and watched, not what is learned.
MUTABLE_KEYS = (
    "output",
    "steps",
    "resume",
    "mesh",
    "distributed",
    "checkpoint",
    "log",
    "loader.workers",
    "loader.threads",
    "loader.limit_bad",
    "optim.remat",
    "optim.attention",
)

TEXTS = 4000  # examples whose texts a vocabulary is learned from


def to_jsonable(config: TrainConfig) -> dict:
    """The config as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


@contextmanager
def locked_run(run: Path, config: TrainConfig) -> Iterator[None]:
    """Holds the run folder, so that no second run writes to it; records the config, or compares it with the one recorded.

    Raises UserError where another process trains there, or where the folder's run is of another config: names what differs.
    """
    if jax.process_index():
        yield
        return
    if run.exists() and not run.is_dir():
        raise UserError(f"--output {run}: is a file; name a folder")
    file = run / "config.json"
    if (
        run.is_dir()
        and not file.exists()
        and any(path.name not in ("lock", "tokenizer", "checkpoints") for path in run.iterdir())
    ):
        raise UserError(
            f"--output {run}: is a folder of something else (no config.json in it); name a new one"
        )
    run.mkdir(parents=True, exist_ok=True)
    busy = f"--output {run}: another process is training there; wait for it, stop it, or name another folder"
    with file_lock(run / "lock", busy, "w"):
        if file.exists():
            check_same_config(run, json.loads(file.read_text()), to_jsonable(config))
        write_json(file, to_jsonable(config))
        yield


def check_same_config(run: Path, before: dict, now: dict) -> None:
    """UserError that names the values in which a run's config differs from what is asked for, except those in `MUTABLE_KEYS`.

    What an older release did not record yet had what is the default now.
    """
    recorded = {RENAMED.get(name, name): value for name, value in flat(before).items()}
    old, new = flat(to_jsonable(TrainConfig())) | recorded, flat(now)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    names = [
        name
        for name in names
        if not any(name == free or name.startswith(f"{free}.") for free in MUTABLE_KEYS)
    ]
    if names:
        told = "; ".join(f"--{name} was {old.get(name)}, is {new.get(name)}" for name in names[:8])
        raise UserError(
            f"{run}: holds a run of another config ({told}). Give the same, or a new --output, with --model {run} to start from its weights"
        )


def flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out = {}
    for name, value in tree.items():
        out |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return out


def check_origin(run: Path, before: dict, now: dict) -> None:
    """UserError where the weights that a run started from, and that its checkpoints do not hold, are no longer the same."""
    if before != now:
        changed = [
            name
            for name in before.get("files", {})
            if before["files"][name] != now.get("files", {}).get(name)
        ] or ["all"]
        raise UserError(
            f"{run}: the weights it started from have changed ({before.get('model')}: {', '.join(changed[:5])}); put the old ones back"
        )


def texts(config: TrainConfig) -> Iterator[str]:
    """Instructions and captions of the training data, for a vocabulary."""
    for name in config.data:
        if name in shapes.WORLDS:
            drawn = dict(kinds=config.loader.kinds, world=name, phrasings=config.loader.phrasings)
            specs = (shapes.sample_spec(config.seed, i, **drawn) for i in range(TEXTS))
            for spec in specs:
                yield from (
                    shapes.instruction(spec.scene, spec.edit),
                    shapes.caption(spec.scene),
                    shapes.caption(spec.edited),
                )
        else:
            from ivid2vid_jax.data.dataset import open_dataset

            source = open_dataset(name)
            for i in range(min(TEXTS, len(source))):
                record = source[i]
                yield from (record.instruction, record.source_caption, record.edited_caption)
