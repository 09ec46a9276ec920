"""The RUN folder: its lock, and its config.json, which a resumed run is compared with."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from ivid2vid_jax.data import shapes
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.training.config import RENAMED, TrainConfig
from ivid2vid_jax.utils.atomic import recover_replaced
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.utils.locks import file_lock

# Fields that may change when a run is resumed: they do not change what is learned.
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
    "optim.offload",
)

VOCABULARY_EXAMPLES = 4000  # examples per dataset whose texts a vocabulary is learned from


def to_jsonable(config: TrainConfig) -> dict:
    """The config as JSON stores it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def read_config(run: Path) -> TrainConfig:
    """The config of a run, from its config.json; fields that it lacks have today's defaults."""
    recorded = renamed_keys(read_json(run / "config.json"))

    def build(cls: Any, prefix: str = "") -> Any:
        return cls(
            **{
                field.name: build(field.type, f"{prefix}{field.name}.")
                if dataclasses.is_dataclass(field.type)
                else tuples(recorded[prefix + field.name])
                for field in dataclasses.fields(cls)
                if dataclasses.is_dataclass(field.type) or prefix + field.name in recorded
            }
        )

    return build(TrainConfig)


def tuples(value: Any) -> Any:
    """JSON lists as tuples, nested ones too."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def renamed_keys(config: dict) -> dict[str, Any]:
    """A config as JSON stores it, flat, with today's names of fields."""
    return {RENAMED.get(name, name): value for name, value in flatten_keys(config).items()}


@contextmanager
def locked_run(run: Path, config: TrainConfig, has_checkpoint: bool) -> Iterator[None]:
    """Locks the run folder against a second training process; writes config.json.

    A run without a checkpoint starts anew and may have another config.

    Raises UserError if another process trains there, or if the folder holds something else or a run
    with another config: the error names the options that differ.
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
            f"--output {run}: is not a RUN folder (it has files but no config.json); name a new one"
        )
    run.mkdir(parents=True, exist_ok=True)
    if_locked = (
        f"--output {run}: another process is training there; wait for it, stop it, or name another "
        "folder"
    )
    with file_lock(run / "lock", if_locked, "w"):
        if file.exists() and has_checkpoint:
            check_same_config(run, json.loads(file.read_text()), to_jsonable(config))
        elif file.exists() and json.loads(file.read_text()) != to_jsonable(config):
            discard_results(run)
        write_json(file, to_jsonable(config))
        recover_replaced(run / "pipeline")
        yield


def discard_results(run: Path) -> None:
    """Removes what depends on the config of a run without checkpoint: vocabulary and benchmark."""
    for name in ("tokenizer", "benchmark"):
        shutil.rmtree(run / name, ignore_errors=True)


def check_same_config(run: Path, before: dict, now: dict) -> None:
    """Raises UserError that names the options in which two configs differ, except `MUTABLE_KEYS`.

    Fields that the older config lacks count as today's defaults, because newer releases add fields.
    """
    old = flatten_keys(to_jsonable(TrainConfig())) | renamed_keys(before)
    new = flatten_keys(now)
    changed = [
        name
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not is_mutable(name)
    ]
    if changed:
        changes = "; ".join(
            f"--{name.replace('_', '-')} was {old.get(name)}, is {new.get(name)}"
            for name in changed[:8]
        )
        has_weights = (run / "pipeline").is_dir()
        raise UserError(
            f"{run}: holds a run of another config ({changes}). Use the same options, or a new "
            f"--output{f', with --model {run} to start from its weights' if has_weights else ''}"
        )


def is_mutable(name: str) -> bool:
    """Whether a config field, named with dots, may change when a run is resumed."""
    return any(name == key or name.startswith(f"{key}.") for key in MUTABLE_KEYS)


def flatten_keys(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            flatten_keys(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def check_origin(run: Path, before: dict, now: dict) -> None:
    """Raises UserError if the weights that a run started from have changed.

    Checkpoints hold only the trained weights; the frozen ones are read from the origin again.
    """
    if before != now:
        changed = [
            name
            for name in before.get("files", {})
            if before["files"][name] != now.get("files", {}).get(name)
        ] or ["all"]
        raise UserError(
            f"{run}: the weights it started from have changed ({before.get('model')}: "
            f"{', '.join(changed[:5])}); restore the old files"
        )


def texts(config: TrainConfig) -> Iterator[str]:
    """Instructions and captions of the training data, to learn a vocabulary from."""
    for name in config.data:
        if name in shapes.WORLDS:
            for i in range(VOCABULARY_EXAMPLES):
                spec = shapes.sample_spec(
                    config.seed,
                    i,
                    kinds=config.loader.kinds,
                    world=name,
                    phrasings=config.loader.phrasings,
                )
                yield shapes.instruction(spec.scene, spec.edit)
                yield shapes.caption(spec.scene)
                yield shapes.caption(spec.edited)
        else:
            from ivid2vid_jax.data.dataset import open_dataset

            source = open_dataset(name)
            for i in range(min(VOCABULARY_EXAMPLES, len(source))):
                record = source[i]
                yield from (record.instruction, record.source_caption, record.edited_caption)
