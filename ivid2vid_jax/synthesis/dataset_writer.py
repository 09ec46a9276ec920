"""The last stage, "write": the dataset of the best edits, its statistics, and an HTML report."""

import collections
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.data import dataset, shapes, shards
from ivid2vid_jax.data.readers import Item
from ivid2vid_jax.data.records import RecordMaker, split_by_origin
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.config import SHAPES, STAGES
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.filter import keep_best
from ivid2vid_jax.synthesis.fingerprints import fingerprint
from ivid2vid_jax.synthesis.report import write_report
from ivid2vid_jax.synthesis.stages.edits import Edit
from ivid2vid_jax.utils.intervals import wilson_interval
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.utils.progress import Progress

TRIPLETS_PER_SHARD = 500
SHAPES_FPS = 8.0


@dataclasses.dataclass(frozen=True)
class DatasetItem(Item):
    """An edit that goes into the dataset, and its CLIP scores as JSON."""

    edit: Edit
    scores: str

    @property
    def origin(self) -> str:
        """Edits of the same video go into the same split."""
        return self.edit.video


@dataclasses.dataclass(frozen=True)
class DatasetItemReader:
    """Reads triplets from the engine's folder."""

    folder: Path
    fps: float
    licence: str
    base: str

    def read(self, item: DatasetItem) -> Triplet:
        """The triplet of an edit."""
        edit = item.edit
        return Triplet(
            id=item.id,
            source=np.load(self.folder / "clips" / f"{edit.clip}.npy"),
            edited=np.load(self.folder / "edits" / f"{edit.id}.npy"),
            instruction=edit.instruction,
            source_caption=edit.caption,
            edited_caption=edit.edited_caption,
            edit_type=edit.edit_type,
            fps=self.fps,
            mask=None,
            licence=self.licence,
            provenance=edit.spec or f"{edit.video}, edited with {self.base}; CLIP {item.scores}",
        )


def write_dataset(engine: Engine) -> None:
    """Writes OUTPUT/dataset, statistics.json and index.html; shard 0 does it for all.

    Raises UserError if a shard has not tried all of its items yet, or if no edit was accepted.
    """
    if engine.shard[0]:
        print("write: left to shard 0")
        return
    if engine.shard[1] > 1:
        engine = Engine(engine.config)  # its caches may be older than the other shards' results
        check_stages_are_done(engine)
    lines = engine.scores.accepted()
    selected, dropped = keep_best(lines, engine.config.filter.keep)
    best = [line for line in lines if line["id"] in selected]
    if not best:
        raise UserError(
            f"no edit has been accepted: see {engine.folder}/scores*.jsonl for the reasons, and "
            "lower --filter.*"
        )
    folder = make_dataset(engine, best)
    statistics = make_statistics(engine, selected, dropped)
    write_json(engine.folder / "statistics.json", statistics)
    write_report(engine, selected, dropped, statistics, frame_rate(engine))
    print(
        f"write: {len(best)} triplets in {folder}, {len(dropped)} left out because others by the "
        f"same instruction score higher; look at {engine.folder / 'index.html'}"
    )


def check_stages_are_done(engine: Engine) -> None:
    """Raises UserError if an item of any shard has not been tried.

    In the order of the stages: only when a stage is done are all items of the next one known.
    """
    for name in STAGES[:-1]:
        stage = engine.stage(name)
        if untried := stage.manifest().untried(stage.fingerprints):
            raise UserError(
                f"{name}: {len(untried)} of {len(stage.fingerprints)} are still to be done by "
                "other shards; run --stages write when all are"
            )


def frame_rate(engine: Engine) -> float:
    """Frames per second of the clips."""
    return SHAPES_FPS if engine.config.videos == SHAPES else engine.config.clips.fps


def make_dataset(engine: Engine, lines: list[dict]) -> Path:
    """Writes the edits of these manifest lines, unless the dataset holds exactly them already.

    A new dataset is written to a folder of its own, which then replaces the old one.
    """
    config, target = engine.config, engine.folder / "dataset"
    fps = frame_rate(engine)
    arguments = {
        "edits": fingerprint([(line["id"], line["mark"]) for line in lines]),
        "codec": config.codec,
        "validation": config.validation,
        "licence": config.licence,
        "fps": fps,
    }
    arguments_file = target / shards.ARGUMENTS
    if shards.is_finished(target) and json.loads(arguments_file.read_text()) == arguments:
        return target
    items = [
        DatasetItem(
            line["id"], line["id"], engine.edits.edits[line["id"]], json.dumps(line["scores"])
        )
        for line in lines
    ]
    reader = DatasetItemReader(engine.folder, fps, config.licence, config.base)
    temporary = engine.folder / f".dataset-{fingerprint(arguments)}"
    with shards.lock_folder(temporary, arguments):
        write_shards(temporary, items, RecordMaker(reader, config.codec), config.validation)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for unfinished in engine.folder.glob(".dataset-*"):
        shutil.rmtree(unfinished)
    return target


def write_shards(
    folder: Path, items: list[DatasetItem], make: RecordMaker, validation: float
) -> None:
    """Writes the shards that are not complete yet, and the dataset's description."""
    splits: dict[str, Sequence] = dict(split_by_origin(items, validation))
    planned = shards.plan_shards("triplets", splits, TRIPLETS_PER_SHARD)
    with Progress("triplets") as progress:
        outcomes = shards.write_shards(folder, planned, dataset.features(), make, progress=progress)
    if bad := [item for outcome in outcomes for item in outcome.bad.values()]:
        raise UserError(
            f"{bad[0].where}: {bad[0].reason}; {len(bad)} edits cannot be read back from "
            f"{folder.parent}"
        )
    if not shards.is_finished(folder):
        description = "Triplets made by ivid2vid_jax.synthesize."
        shards.write_metadata(folder, dataset.features(), outcomes, description)


def make_statistics(engine: Engine, selected: set[str], dropped: dict[str, str]) -> dict[str, Any]:
    """Counts and reasons per stage, near-duplicates, edit types, and `true_success` if known."""
    stages = {}
    for name in STAGES[:-1]:
        stage = engine.stage(name)
        stages[name] = {
            "items": len(stage.fingerprints),
            "accepted": len(stage.accepted()),
            "others": stage.manifest().reasons(stage.fingerprints),
        }
    types = (engine.edits.edits[id].edit_type for id in sorted(selected))
    statistics = {
        "stages": stages,
        "repeats": engine.clips.near_duplicates,
        "triplets": len(selected),
        "not the best": len(dropped),
        "edit_types": dict(collections.Counter(types)),
    }
    if engine.config.videos == SHAPES:
        statistics["truth"] = true_success(engine, selected)
    return statistics


def true_success(engine: Engine, selected: set[str]) -> dict[str, dict]:
    """Shares of the scored edits that the shapes world's checker passes, with 95% intervals.

    Also the filter's precision and recall with respect to it. An edit that is impossible in its
    scene, e.g. because of a wrong caption, does not pass.
    """
    scored = {id: engine.edits.edits[id] for id in engine.scores.fingerprints}
    possible = {id: edit for id, edit in scored.items() if edit.spec}
    passed = {
        id
        for id, edit in possible.items()
        if shapes.check(
            engine.workspace.read_clip(edit.clip),
            engine.workspace.read_edit(id),
            shapes.Spec.from_json(edit.spec),
        ).passed
    }

    def share(part: set, whole: set) -> dict:
        return {
            "count": len(whole),
            "share": len(part) / len(whole) if whole else None,
            "interval": wilson_interval(len(part), len(whole)) if whole else None,
        }

    return {
        "edits that pass": share(passed, set(scored)),
        "precision": share(passed & selected, selected),
        "recall": share(passed & selected, passed),
        "edits of this world": share(set(possible), set(scored)),
    }
