"""What the data engine leaves: the dataset of the best edits, its statistics, and a page to judge it by eye."""

import base64
import collections
import dataclasses
import html
import io
import json
import shutil
from pathlib import Path

import numpy as np

from ivid2vid_jax.utils.cli import Progress
from ivid2vid_jax.data import dataset, shapes, shards
from ivid2vid_jax.data.readers import Item
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import wilson
from ivid2vid_jax.prepare import Examples, divide
from ivid2vid_jax.synthesis.config import OWN, STAGES
from ivid2vid_jax.synthesis.engine import Edit, Engine
from ivid2vid_jax.synthesis.filter import best
from ivid2vid_jax.synthesis.manifest import mark
from ivid2vid_jax.video import compare
from ivid2vid_jax.weights.safetensors_io import write_json

SHOWN = 24  # contact sheets of accepted edits on the page, and as many of rejected ones
PER_SHARD = 500


@dataclasses.dataclass(frozen=True)
class Made(Item):
    """An edit that goes into the dataset."""

    edit: Edit
    scores: str

    @property
    def origin(self) -> str:
        return self.edit.video


@dataclasses.dataclass(frozen=True)
class MadeReader:
    """Triplets from the engine's folder."""

    folder: Path
    fps: float
    licence: str
    base: str

    def read(self, item: Made) -> Triplet:
        edit = item.edit
        source, edited = (np.load(self.folder / kind / f"{id}.npy") for kind, id in (("clips", edit.clip), ("edits", edit.id)))
        words = (edit.instruction, edit.caption, edit.edited_caption, edit.edit_type)
        provenance = edit.spec or f"{edit.video}, edited with {self.base}; CLIP {item.scores}"
        return Triplet(item.id, source, edited, *words, self.fps, None, self.licence, provenance)


def write(engine: Engine) -> None:
    """The dataset in OUTPUT/dataset, statistics.json and index.html."""
    if engine.shard != (0, 1):
        if engine.shard[0]:
            return print("write: left to shard 0")
        engine = Engine(engine.config)  # that has not seen how far the other shards were when this one began
        for stage in STAGES[:-1]:  # in this order: only where a stage is done are the items of the next all known
            if unfinished := len(engine.manifest(stage).untried(engine.marks(stage))):
                raise UserError(f"{stage}: {unfinished} of {len(engine.marks(stage))} are still to be done by other shards; run --stages write when all are")
    lines = engine.manifest("scores").accepted(engine.score_marks)
    kept, dropped = best(lines, engine.config.filter.keep)
    chosen = [line for line in lines if line["id"] in kept]
    if not chosen:
        raise UserError(f"no edit has been accepted: see {engine.folder}/scores*.jsonl for the reasons, and lower --filter.*")
    target = make_dataset(engine, chosen)
    found = statistics(engine, kept, dropped)
    write_json(engine.folder / "statistics.json", found)
    page(engine, kept, dropped, found)
    print(f"write: {len(chosen)} triplets in {target}, {len(dropped)} left out beside better ones; look at {engine.folder / 'index.html'}")


def make_dataset(engine: Engine, chosen: list[dict]) -> Path:
    """The same edits are never written twice; other ones replace the dataset when they are whole."""
    c, target = engine.config, engine.folder / "dataset"
    fps = 8.0 if c.videos == OWN else c.clips.fps
    items = [Made(line["id"], line["id"], engine.jobs[line["id"]], json.dumps(line["scores"])) for line in chosen]
    arguments = {"edits": mark([(line["id"], line["mark"]) for line in chosen]), "codec": c.codec, "validation": c.validation, "licence": c.licence, "fps": fps}
    before = target / shards.ARGUMENTS
    if shards.is_described(target) and json.loads(before.read_text()) == arguments:
        return target
    aside = engine.folder / f".dataset-{mark(arguments)}"
    planned = shards.plan("triplets", divide(items, c.validation), PER_SHARD)
    with shards.claim(aside, arguments), Progress("triplets") as progress:
        make = Examples(MadeReader(engine.folder, fps, c.licence, c.base), c.codec)
        outcomes = shards.write_shards(aside, planned, dataset.features(), make, progress=progress)
        if bad := [each for outcome in outcomes for each in outcome.bad.values()]:
            raise UserError(f"{bad[0].where}: {bad[0].reason}; {len(bad)} edits cannot be read back from {engine.folder}")
        if not shards.is_described(aside):
            shards.describe(aside, dataset.features(), outcomes, "Triplets made by ivid2vid_jax.synthesize.")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in engine.folder.glob(".dataset-*"):
        shutil.rmtree(old)
    return target


def statistics(engine: Engine, kept: set[str], dropped: dict[str, str]) -> dict:
    """Of each stage: how many items were accepted, and the reasons of the others; the clips that repeat others; of the edits: types, scores, and where
    the truth is known how many are what was asked for, with 95% intervals."""
    stages = {}
    for stage in STAGES[:-1]:
        each, manifest = engine.marks(stage), engine.manifest(stage)
        stages[stage] = {"items": len(each), "accepted": len(manifest.accepted(each)), "others": manifest.reasons(each)}
    found = {"stages": stages, "repeats": engine.repeats, "triplets": len(kept), "not the best": len(dropped)}
    found["edit_types"] = dict(collections.Counter(engine.jobs[id].edit_type for id in sorted(kept)))
    if engine.config.videos == OWN:
        found["truth"] = truth(engine, kept)
    return found


def truth(engine: Engine, kept: set[str]) -> dict:
    """The shapes world's checker on every edit that was scored: the filter's precision and recall, and what editing loses before it. Edits that the
    scene cannot be given, as by a wrong caption, pass none."""
    scored = {id: engine.jobs[id] for id in engine.score_marks}
    known = {id: edit for id, edit in scored.items() if edit.spec}
    good = {id for id, edit in known.items() if shapes.check(engine.clip(edit.clip), engine.edited(id), shapes.Spec.from_json(edit.spec)).passed}

    def share(part: set, whole: set) -> dict:
        return {"count": len(whole), "share": len(part) / len(whole) if whole else None, "interval": wilson(len(part), len(whole)) if whole else None}

    found = {"edits that pass": share(good, set(scored)), "precision": share(good & kept, kept), "recall": share(good & kept, good)}
    return found | {"edits of this world": share(set(known), set(scored))}


def page(engine: Engine, kept: set[str], dropped: dict[str, str], found: dict) -> None:
    """One file that shows contact sheets of accepted and rejected edits and histograms of their scores."""
    manifest = engine.manifest("scores")
    lines = [manifest.lines[id] for id in sorted(engine.score_marks) if id in manifest.lines]
    accepted, rejected = [line for line in lines if line["id"] in kept], [line for line in lines if line["id"] not in kept]
    parts = [f"<h1>{html.escape(str(engine.folder))}</h1><pre>{html.escape(json.dumps(found, indent=1))}</pre><h2>Scores</h2>", picture(histograms(accepted, rejected))]
    for title, group in (("Accepted", accepted), ("Rejected", rejected)):
        parts.append(f"<h2>{title}: {len(group)}</h2>")
        for i in np.unique(np.linspace(0, len(group) - 1, min(SHOWN, len(group))).round().astype(int)):
            line, edit = group[i], engine.jobs[group[i]["id"]]
            clips = (engine.clip(edit.clip), engine.edited(edit.id))
            shown = np.unique(np.linspace(0, len(clips[0]) - 1, min(8, len(clips[0]))).round().astype(int))
            reason = line.get("reason") or dropped.get(line["id"], "")
            sheet = compare.sheet([tuple(clip[frame] for clip in clips) for frame in shown], edit.instruction)
            scores = ", ".join(f"{name} {value:.2f}" for name, value in line["scores"].items())
            words = " ".join(f"<p>{html.escape(text)}</p>" for text in (edit.id, f"{edit.caption} → {edit.edited_caption}", scores, reason) if text)
            parts.append(f"<section><h3>{html.escape(edit.instruction)}</h3>{picture(sheet)}{words}</section>")
    style = "body{font:14px sans-serif;max-width:1100px;margin:2em auto}section{border-top:1px solid #ccc;padding:1em 0}p{margin:.2em 0}img{max-width:100%}"
    document = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Synthesised triplets</title><style>{style}</style>{"".join(parts)}</html>\n'
    aside = engine.folder / "index.html.tmp"
    aside.write_text(document)
    aside.replace(engine.folder / "index.html")


def histograms(accepted: list[dict], rejected: list[dict]):
    """Of each score, both groups; a PIL image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    names = list((accepted or rejected)[0]["scores"])
    figure, axes = pyplot.subplots(1, len(names), figsize=(3 * len(names), 2.6), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        groups = [[line["scores"][name] for line in group] for group in (accepted, rejected)]
        axis.hist(groups, bins=20, stacked=True, label=["accepted", "rejected"])
        axis.set_title(name)
    axes[0].legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    pyplot.close(figure)
    return Image.open(out)


def picture(image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'
