"""The HTML report of a data-engine run: counts, reasons, score histograms, clips of edits."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from ivid2vid_jax.evaluation import page_parts
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.utils.atomic import atomic_write_text

MAX_CLIPS = 24  # per group


def write_report(
    engine: Engine,
    selected: set[str],
    dropped: Mapping[str, str],
    statistics: dict[str, Any],
    fps: float,
) -> None:
    """Writes OUTPUT/index.html, one file with all images in it.

    Args:
        engine: the run.
        selected: ids of the edits in the dataset.
        dropped: accepted edits that are not in the dataset: id -> reason.
        statistics: of `dataset_writer.make_statistics`.
        fps: frames per second of the clips.
    """
    manifest = engine.scores.manifest()
    lines = [
        manifest.lines[id] for id in sorted(engine.scores.fingerprints) if id in manifest.lines
    ]
    groups = {
        "Accepted": [line for line in lines if line["id"] in selected],
        "Rejected": [line for line in lines if line["id"] not in selected],
    }
    stages = statistics["stages"]
    counts = [(name, stage["items"], stage["accepted"]) for name, stage in stages.items()]
    reasons = [
        (name, *reason.split(": ", 1), count)
        for name, stage in stages.items()
        for reason, count in stage["others"].items()
    ]
    left_out = collections.Counter(dropped.values())
    reasons += [("write", "left out", reason, count) for reason, count in left_out.items()]
    parts = [
        f"<h2>Stages</h2>{page_parts.table(('stage', 'items', 'accepted'), counts)}",
        "<h2>Why items were not accepted</h2>",
        page_parts.table(("stage", "status", "criterion", "items"), reasons)
        if reasons
        else "<p>All items were accepted.</p>",
        f"<h2>Scores</h2>{histograms(*groups.values())}",
    ]
    for title, group in groups.items():
        parts.append(f"<h2>{title}: {len(group)}</h2>")
        for index in evenly_spaced(len(group), MAX_CLIPS):
            line = group[index]
            reason = line.get("reason") or dropped.get(line["id"], "")
            parts.append(edit_section(engine, line, reason, fps))
    record = {"folder": str(engine.folder.resolve())} | statistics
    parts.append(page_parts.folded("All statistics", page_parts.record_table(record)))
    title = f"{len(selected)} synthesised triplets"
    atomic_write_text(engine.folder / "index.html", page_parts.html_page(title, parts))


def edit_section(engine: Engine, line: dict, reason: str, fps: float) -> str:
    """The HTML of one edit: its clips, captions, scores, and why it was rejected."""
    edit = engine.edits.edits[line["id"]]
    clips = engine.workspace.read_clip(edit.clip), engine.workspace.read_edit(edit.id)
    picture = page_parts.animation(np.concatenate(clips, axis=2), fps)
    scores = ", ".join(f"{name} {value:.2f}" for name, value in line["scores"].items())
    remarks = filter(None, (f"{edit.caption} → {edit.edited_caption}", scores, reason))
    source = page_parts.data_uri(picture, "webp")
    return page_parts.clip_section(edit.instruction, edit.id, source, ("source", "edit"), remarks)


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """At most `count` indices below `length`, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def histograms(accepted: list[dict], rejected: list[dict]) -> str:
    """A chart: a histogram of each score, with both groups stacked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list((accepted or rejected)[0]["scores"])
    rows = -(-len(names) // 3)
    figure, axes = pyplot.subplots(
        rows, 3, figsize=(11, 2.6 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        values = [[line["scores"][name] for line in group] for group in (accepted, rejected)]
        axis.hist(values, bins=20, stacked=True, label=["accepted", "rejected"])
        axis.set(title=name, xlabel="cosine similarity", ylabel="edits")
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].legend()
    return page_parts.chart(figure, "histograms of the scores")
