"""What the data engine leaves: the dataset of the best edits, its statistics, and a page to judge it by eye."""

import collections
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from ivid2vid_jax.data import dataset, shapes, shards
from ivid2vid_jax.data.readers import Item
from ivid2vid_jax.data.records import RecordMaker, split_by_origin
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.synthesis import report
from ivid2vid_jax.synthesis.config import OWN, STAGES
from ivid2vid_jax.synthesis.engine import Edit, Engine
from ivid2vid_jax.synthesis.filter import keep_best
from ivid2vid_jax.synthesis.manifest import fingerprint
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import wilson_interval
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.utils.progress import Progress

PER_SHARD = 500


@dataclasses.dataclass(frozen=True)
class DatasetItem(Item):
    """An edit that goes into the dataset."""

    edit: Edit
    scores: str

    @property
    def origin(self) -> str:
        return self.edit.video


@dataclasses.dataclass(frozen=True)
class DatasetItemReader:
    """Triplets from the engine's folder."""

    folder: Path
    fps: float
    licence: str
    base: str

    def read(self, item: DatasetItem) -> Triplet:
        edit = item.edit
        source, edited = (
            np.load(self.folder / kind / f"{id}.npy")
            for kind, id in (("clips", edit.clip), ("edits", edit.id))
        )
        words = (edit.instruction, edit.caption, edit.edited_caption, edit.edit_type)
        provenance = edit.spec or f"{edit.video}, edited with {self.base}; CLIP {item.scores}"
        return Triplet(item.id, source, edited, *words, self.fps, None, self.licence, provenance)


def write_dataset(engine: Engine) -> None:
    """The dataset in OUTPUT/dataset, statistics.json and index.html."""
    if engine.shard != (0, 1):
        if engine.shard[0]:
            return print("write: left to shard 0")
        engine = Engine(
            engine.config
        )  # that has not seen how far the other shards were when this one began
        for stage in STAGES[
            :-1
        ]:  # in this order: only where a stage is done are the items of the next all known
            if unfinished := len(engine.manifest(stage).untried(engine.marks(stage))):
                raise UserError(
                    f"{stage}: {unfinished} of {len(engine.marks(stage))} are still to be done by other shards; run --stages write when all are"
                )
    lines = engine.manifest("scores").accepted(engine.score_marks)
    kept, dropped = keep_best(lines, engine.config.filter.keep)
    chosen = [line for line in lines if line["id"] in kept]
    if not chosen:
        raise UserError(
            f"no edit has been accepted: see {engine.folder}/scores*.jsonl for the reasons, and lower --filter.*"
        )
    target = make_dataset(engine, chosen)
    found = statistics(engine, kept, dropped)
    write_json(engine.folder / "statistics.json", found)
    report.page(engine, kept, dropped, found)
    print(
        f"write: {len(chosen)} triplets in {target}, {len(dropped)} left out beside better ones; look at {engine.folder / 'index.html'}"
    )


def make_dataset(engine: Engine, chosen: list[dict]) -> Path:
    """The same edits are never written twice; other ones replace the dataset when they are whole."""
    c, target = engine.config, engine.folder / "dataset"
    fps = 8.0 if c.videos == OWN else c.clips.fps
    items = [
        DatasetItem(line["id"], line["id"], engine.jobs[line["id"]], json.dumps(line["scores"]))
        for line in chosen
    ]
    arguments = {
        "edits": fingerprint([(line["id"], line["mark"]) for line in chosen]),
        "codec": c.codec,
        "validation": c.validation,
        "licence": c.licence,
        "fps": fps,
    }
    before = target / shards.ARGUMENTS
    if shards.is_described(target) and json.loads(before.read_text()) == arguments:
        return target
    aside = engine.folder / f".dataset-{fingerprint(arguments)}"
    planned = shards.plan_shards("triplets", split_by_origin(items, c.validation), PER_SHARD)
    with shards.lock_folder(aside, arguments), Progress("triplets") as progress:
        make = RecordMaker(DatasetItemReader(engine.folder, fps, c.licence, c.base), c.codec)
        outcomes = shards.write_shards(aside, planned, dataset.features(), make, progress=progress)
        if bad := [each for outcome in outcomes for each in outcome.bad.values()]:
            raise UserError(
                f"{bad[0].where}: {bad[0].reason}; {len(bad)} edits cannot be read back from {engine.folder}"
            )
        if not shards.is_described(aside):
            shards.write_metadata(
                aside, dataset.features(), outcomes, "Triplets made by ivid2vid_jax.synthesize."
            )
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in engine.folder.glob(".dataset-*"):
        shutil.rmtree(old)
    return target


def statistics(engine: Engine, kept: set[str], dropped: dict[str, str]) -> dict:
    """Of each stage: how many items were accepted, and the reasons of the others; the clips that repeat others; of the edits: types, scores, and where
    the truth is known how many are what was asked for, with 95% intervals.
    """
    stages = {}
    for stage in STAGES[:-1]:
        each, manifest = engine.marks(stage), engine.manifest(stage)
        stages[stage] = {
            "items": len(each),
            "accepted": len(manifest.accepted(each)),
            "others": manifest.reasons(each),
        }
    found = {
        "stages": stages,
        "repeats": engine.repeats,
        "triplets": len(kept),
        "not the best": len(dropped),
    }
    found["edit_types"] = dict(
        collections.Counter(engine.jobs[id].edit_type for id in sorted(kept))
    )
    if engine.config.videos == OWN:
        found["truth"] = true_success(engine, kept)
    return found


def true_success(engine: Engine, kept: set[str]) -> dict:
    """The shapes world's checker on every edit that was scored: the filter's precision and recall, and what editing loses before it. Edits that the
    scene cannot be given, as by a wrong caption, pass none.
    """
    scored = {id: engine.jobs[id] for id in engine.score_marks}
    known = {id: edit for id, edit in scored.items() if edit.spec}
    good = {
        id
        for id, edit in known.items()
        if shapes.check(
            engine.clip(edit.clip), engine.edited(id), shapes.Spec.from_json(edit.spec)
        ).passed
    }

    def share(part: set, whole: set) -> dict:
        return {
            "count": len(whole),
            "share": len(part) / len(whole) if whole else None,
            "interval": wilson_interval(len(part), len(whole)) if whole else None,
        }

    found = {
        "edits that pass": share(good, set(scored)),
        "precision": share(good & kept, kept),
        "recall": share(good & kept, good),
    }
    return found | {"edits of this world": share(set(known), set(scored))}
