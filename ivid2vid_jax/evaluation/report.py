"""The report of an evaluation of clips.

report.json has every number with its definition, items.csv a row per edit, and index.html is one
file to read and to look at.
"""

import collections
import csv
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.evaluation import page_parts
from ivid2vid_jax.evaluation.clip_metrics import SET_METRICS, ClipItem, summary
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask
from ivid2vid_jax.evaluation.metrics import METRICS
from ivid2vid_jax.utils.atomic import atomic_path

METHOD = (
    "Clips were first reduced to a shorter side of at most {size} pixels. 95% confidence intervals "
    "are bootstrap intervals that resample source clips, each with all its edits."
)


def metric_entries(
    items: Sequence[ClipItem],
    names: Sequence[str],
    summaries: Mapping[str, dict],
    distances: Mapping[str, dict],
    notes: Mapping[str, str],
    weights: Mapping[str, dict],
) -> dict[str, dict[str, Any]]:
    """By metric: definition, numbers and N, hash of the weights, missing values, and a note."""
    entries: dict[str, dict[str, Any]] = {}
    for name in names:
        metric = METRICS[name]
        if name in SET_METRICS:
            clips = sum(bool(item.features) for item in items)
            numbers = {"clips": clips} | distances.get(name, {})
        else:
            numbers = summaries.get(name, {"clips": 0, "frames": 0})
        reasons = collections.Counter(item.reasons[name] for item in items if name in item.reasons)
        entries[name] = {
            "title": metric.title,
            "unit": metric.unit,
            "better": metric.better,
            "definition": metric.definition,
            "reference": metric.reference,
            "weights": weights.get(metric.needs),
            "numbers": numbers,
            "without": dict(reasons),
            "note": notes.get(name, ""),
        }
    return entries


def write(
    output: Path,
    record: dict[str, Any],
    tasks: Sequence[EvaluationTask],
    items: Sequence[ClipItem],
    metrics: dict[str, dict[str, Any]],
    clips: Iterable[tuple[EvaluationTask, np.ndarray, float]],
) -> None:
    """Writes report.json, items.csv and index.html.

    Args:
        output: the folder.
        record: what was evaluated and with which settings.
        tasks: of the set.
        items: finished ones.
        metrics: of `metric_entries`.
        clips: for the page: (task, source, edit and true edit, if known, side by side
            [T, H, 2W or 3W, 3], frames per second).
    """
    unread = {item.id: item.error for item in items if item.error}
    noted = {item.id: item.note for item in items if item.note}
    types = by_type(tasks, items, [name for name in metrics if name not in SET_METRICS])
    document = record | {
        "edits": len(tasks),
        "judged": len(items) - len(unread),
        "not_judged": unread,
        "unlike_lengths": noted,
        "metrics": metrics,
    }
    document |= {"by_edit_type": types} if types else {}
    with atomic_path(output / "report.json") as file:
        file.write_text(json.dumps(to_jsonable(document), indent=2) + "\n")
    with atomic_path(output / "items.csv") as file:
        write_csv(file, tasks, items, list(metrics))
    notes = {"Edits not evaluated": unread, "Clips of different length": noted}
    with atomic_path(output / "index.html") as file:
        file.write_text(page(record, items, metrics, types, notes, clips))


def by_type(
    tasks: Sequence[EvaluationTask], items: Sequence[ClipItem], names: Sequence[str]
) -> dict[str, dict]:
    """The `summary` of each type of edit; empty if the set has fewer than two types."""
    types = {task.id: task.edit_type for task in tasks if task.edit_type}
    sources = {task.id: str(task.source) for task in tasks}
    summaries = {
        edit_type: summary(
            [item for item in items if types.get(item.id) == edit_type], names, sources
        )
        for edit_type in dict.fromkeys(types.values())
    }
    return summaries if len(summaries) > 1 else {}


def to_jsonable(value: Any) -> Any:
    """Replaces infinite and NaN floats, which JSON lacks, by strings such as "inf"."""
    if isinstance(value, dict):
        return {key: to_jsonable(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(child) for child in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def write_csv(
    file: Path, tasks: Sequence[EvaluationTask], items: Sequence[ClipItem], names: Sequence[str]
) -> None:
    """Writes a row per edit; values as in the summary (PSNR in dB), empty where there is none."""
    by_id = {item.id: item for item in items}
    columns = list(
        dict.fromkeys(
            (name, key) for item in items for name in names for key in item.values.get(name, ())
        )
    )
    titles = [f"{name}.{key}" for name, key in columns]
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(
            ["id", "instruction", "frames", "height", "width", *titles, "error", "note"]
        )
        for task in tasks:
            if item := by_id.get(task.id):
                shape = item.shape or ("", "", "")
                values = [summarized(item, name, key) for name, key in columns]
                writer.writerow([task.id, task.instruction, *shape, *values, item.error, item.note])


def summarized(item: ClipItem, name: str, key: str) -> Any:
    """One edit's value as the summary shows it; "" if it has none."""
    if name not in item.values:
        return ""
    return METRICS[name].summary(np.array([item.values[name][key]]))


# ---- the page ----


def page(
    record: dict[str, Any],
    items: Sequence[ClipItem],
    metrics: dict[str, dict[str, Any]],
    types: dict[str, dict],
    notes: dict[str, dict[str, str]],
    clips: Iterable[tuple[EvaluationTask, np.ndarray, float]],
) -> str:
    """The HTML page; notes: heading -> id -> remark."""
    results = f"<h2>Metrics</h2>{metrics_table(metrics)}<p>{METHOD.format(**record['clips'])}</p>"
    parts = [results]
    if types:
        parts.append(f"<h2>Metrics by edit type</h2>{types_table(types)}")
    parts.append("<h2>Clips</h2>")
    for task, clip, fps in clips:
        source = page_parts.data_uri(page_parts.animation(clip, fps), "webp")
        labels = ("source", "edit", *(["true edit"] if task.target else []))
        parts.append(page_parts.clip_section(task.instruction, task.id, source, labels))
    if columns := [name for name in metrics if any(name in item.values for item in items)]:
        parts.append(f"<h2>Distribution over edits</h2>{histograms(items, columns)}")
    for heading, remarks in notes.items():
        if remarks:
            table = page_parts.definition_table(remarks)
            parts.append(f"<h2>{heading}: {len(remarks)}</h2>{table}")
    parts.append(page_parts.folded("Definitions of the metrics", definitions_table(metrics)))
    parts.append(page_parts.folded("Settings and weights", page_parts.record_table(record)))
    judged = sum(not item.error for item in items)
    return page_parts.html_page(f"Evaluation of {judged} edits", parts)


def definitions_table(metrics: dict[str, dict[str, Any]]) -> str:
    """A row per metric: definition, reference and hashes of the weights."""
    rows = []
    for entry in metrics.values():
        weights = entry["weights"] or {}
        hashes = ", ".join(f"{file} {digest[:12]}" for file, digest in weights.items())
        rows.append((entry["title"], entry["definition"], entry["reference"], hashes))
    return page_parts.table(("metric", "definition", "reference", "weights"), rows)


def types_table(types: dict[str, dict]) -> str:
    """A row per metric, a column per edit type."""
    names = dict.fromkeys(name for summaries in types.values() for name in summaries)
    head = "".join(f"<th>{html.escape(edit_type)}</th>" for edit_type in types)
    lines = []
    for name in names:
        values = (summaries.get(name, {}).get("edited") for summaries in types.values())
        lines.append(f"<tr><td>{METRICS[name].title}</td>{''.join(map(cell, values))}</tr>")
    table = f"<table><tr><th>metric of the edited clips</th>{head}</tr>{''.join(lines)}</table>"
    return page_parts.scroll_box(table)


def metrics_table(metrics: dict[str, dict[str, Any]]) -> str:
    """A row per metric."""
    columns = (
        "metric",
        "edited clips [95% interval]",
        "source clips",
        "difference [95% interval]",
        "number of clips",
        "remarks",
    )
    head = "".join(f"<th>{column}</th>" for column in columns)
    rows = "".join(metric_row(name, entry) for name, entry in metrics.items())
    return page_parts.scroll_box(f"<table><tr>{head}</tr>{rows}</table>")


def metric_row(name: str, entry: dict[str, Any]) -> str:
    """A metric's row of the HTML table."""
    numbers = entry["numbers"]
    facts = filter(None, [entry["unit"], f"better: {entry['better']}"])
    title = "<br>".join([f"<b>{html.escape(entry['title'])}</b>", *map(html.escape, facts)])
    values = "".join(cell(numbers.get(key)) for key in ("edited", "source", "gap"))
    texts = [*missing_values(entry), *filter(None, [entry["note"]])]
    about = "<br>".join(map(html.escape, texts))
    return (
        f'<tr id="{name}"><td>{title}</td>{values}'
        f'<td class="number">{sample_size(numbers)}</td><td>{about}</td></tr>'
    )


def missing_values(entry: dict[str, Any]) -> list[str]:
    """In words, how many clips have no value of a metric, by reason."""
    return [f"no value for {count}: {reason}" for reason, count in entry["without"].items()]


def cell(value: dict | float | None) -> str:
    """A number's cell of an HTML table."""
    return f'<td class="number">{number(value)}</td>'


def number(value: dict | float | None) -> str:
    """As "12.3 [11.9, 12.7]"; a distance of sets is a number without an interval."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value:.4g}"
    mean = "exact" if np.isinf(value["mean"]) else f"{value['mean']:.4g}"
    if value["interval"] is None:
        return mean
    low, high = value["interval"]
    return f"{mean} [{low:.4g}, {high:.4g}]"


def sample_size(numbers: dict[str, Any]) -> str:
    """The numbers of clips, sources and frames."""
    counts = [
        f"{numbers[key]} {key.replace('_', ' ')}"
        for key in ("sources", "frames", "edited_frames", "source_frames")
        if key in numbers
    ]
    return "<br>".join([f"{numbers['clips']} clips", *counts])


def text(metrics: dict[str, dict[str, Any]]) -> str:
    """The table of metrics as Markdown."""
    lines = [
        "| metric | unit | edited [95%] | source | difference [95%] | clips | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in metrics.values():
        numbers = entry["numbers"]
        cells = [
            entry["title"],
            entry["unit"],
            *(number(numbers.get(key)) for key in ("edited", "source", "gap")),
            str(numbers["clips"]),
            "; ".join([*filter(None, [entry["note"]]), *missing_values(entry)]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def histograms(items: Sequence[ClipItem], names: Sequence[str]) -> str:
    """A chart: a histogram per metric, of the edits and, where it has them, of the sources."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(names) // 3)
    figure, axes = pyplot.subplots(
        rows, 3, figsize=(11, 2.6 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        groups = finite_values(items, name)
        if groups:
            axis.hist(list(groups.values()), bins=20, label=list(groups))
            axis.legend(fontsize=8)
        axis.set_title(METRICS[name].title, fontsize=10)
        axis.set_xlabel(METRICS[name].unit, fontsize=9)
        axis.set_ylabel("clips", fontsize=9)
        axis.locator_params(axis="x", nbins=4)
    return page_parts.chart(figure, "histograms of the metrics")


def finite_values(items: Sequence[ClipItem], name: str) -> dict[str, list[float]]:
    """Finite values of a metric, of the edits and of the sources; without empty groups."""
    groups: dict[str, list[float]] = {}
    for key in ("edited", "source"):
        values = [
            float(summarized(item, name, key)) for item in items if key in item.values.get(name, ())
        ]
        if finite := [value for value in values if np.isfinite(value)]:
            groups[key] = finite
    return groups
