"""What an evaluation leaves: report.json (every number with its definition), items.csv (a row an edit), index.html (one file, to read and to look at)."""

import base64
import collections
import csv
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ivid2vid_jax.evaluation.clip_metrics import SET_METRICS, ClipItem, summary
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask
from ivid2vid_jax.evaluation.metrics import METRICS
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.video.fit import resize

HOW = "Clips were first reduced to a shorter side of {size} pixels where it was longer. 95% intervals by resampling source clips, each with all its edits."
SIDE = 192  # pixels of a shown clip's longer side
STYLE = (
    "body{font:14px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}table{border-collapse:collapse}td,th{padding:.3em .7em;text-align:left;"
    "border-bottom:1px solid #ccc}td:first-child{min-width:12em}td.number{text-align:right;white-space:nowrap}section{display:inline-block;vertical-align:top;margin:.7em}img{max-width:100%}"
)


def metric_entries(
    items: Sequence[ClipItem],
    names: Sequence[str],
    summaries: dict,
    distances: dict,
    notes: dict,
    weights: dict[str, dict],
) -> dict[str, dict]:
    """By metric: what it is, its numbers and N, the hash of its weights, why clips have no value, and what to know about it."""
    found = {}
    for name in names:
        metric = METRICS[name]
        about = {
            key: getattr(metric, key)
            for key in ("title", "unit", "better", "definition", "reference")
        }
        numbers = summaries.get(name, {"clips": 0, "frames": 0})
        if name in SET_METRICS:
            numbers = {"clips": sum(bool(item.features) for item in items)} | distances.get(
                name, {}
            )
        reasons = dict(
            collections.Counter(item.reasons[name] for item in items if name in item.reasons)
        )
        found[name] = about | {
            "weights": weights.get(metric.needs),
            "numbers": numbers,
            "without": reasons,
            "note": notes.get(name, ""),
        }
    return found


def write(
    output: Path,
    record: dict,
    tasks: Sequence[EvaluationTask],
    items: Sequence[ClipItem],
    found: dict[str, dict],
    shown: Iterable[tuple[EvaluationTask, np.ndarray, float]],
) -> None:
    """record: what was evaluated and with what. shown: (task, source and edit side by side [T, H, 2W, 3], frames/s)."""
    unread, cut = (
        {item.id: item.error for item in items if item.error},
        {item.id: item.note for item in items if item.note},
    )
    types = by_type(tasks, items, [name for name in found if name not in SET_METRICS])
    document = record | {
        "edits": len(tasks),
        "judged": len(items) - len(unread),
        "not_judged": unread,
        "unlike_lengths": cut,
        "metrics": found,
    }
    document |= {"by_edit_type": types} if types else {}
    with atomic_path(output / "report.json") as file:
        file.write_text(json.dumps(to_jsonable(document), indent=2) + "\n")
    with atomic_path(output / "items.csv") as file:
        write_csv(file, tasks, items, list(found))
    with atomic_path(output / "index.html") as file:
        file.write_text(
            page(
                record,
                tasks,
                items,
                found,
                types,
                {"Not judged": unread, "Clips of unlike length": cut},
                shown,
            )
        )


def by_type(
    tasks: Sequence[EvaluationTask], items: Sequence[ClipItem], names: Sequence[str]
) -> dict[str, dict]:
    """`summary` of the edits of each type that the set names; empty where it does not tell two."""
    kinds, sources = (
        {task.id: task.edit_type for task in tasks if task.edit_type},
        {task.id: str(task.source) for task in tasks},
    )
    found = {
        kind: summary([item for item in items if kinds.get(item.id) == kind], names, sources)
        for kind in dict.fromkeys(kinds.values())
    }
    return found if len(found) > 1 else {}


def to_jsonable(value):
    """JSON knows no infinity: it is written as a word."""
    if isinstance(value, dict):
        return {key: to_jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(each) for each in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def write_csv(
    file: Path, tasks: Sequence[EvaluationTask], items: Sequence[ClipItem], names: Sequence[str]
) -> None:
    """Values as the summary shows them (PSNR in dB); empty where an edit has none."""
    by_id = {item.id: item for item in items}
    columns = list(
        dict.fromkeys(
            (name, key) for item in items for name in names for key in item.values.get(name, ())
        )
    )
    with open(file, "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(
            [
                "id",
                "instruction",
                "frames",
                "height",
                "width",
                *(f"{name}.{key}" for name, key in columns),
                "error",
                "note",
            ]
        )
        for task in tasks:
            if item := by_id.get(task.id):
                values = [
                    METRICS[name].summary(np.array([item.values[name][key]]))
                    if name in item.values
                    else ""
                    for name, key in columns
                ]
                rows.writerow(
                    [
                        task.id,
                        task.instruction,
                        *(item.shape or ("", "", "")),
                        *values,
                        item.error,
                        item.note,
                    ]
                )


# ---- the page ----


def page(
    record: dict,
    tasks: Sequence[EvaluationTask],
    items: Sequence[ClipItem],
    found: dict,
    types: dict,
    notes: dict[str, dict[str, str]],
    shown,
) -> str:
    """notes: by heading, what to know about edits."""
    parts = [
        f"<h1>Evaluation of {sum(not item.error for item in items)} edits</h1>{facts(record)}<h2>Metrics</h2>{table(found)}<p>{HOW.format(**record['clips'])}</p>"
    ]
    if types:
        parts.append(f"<h2>By type of edit</h2>{types_table(types)}")
    if columns := [name for name in found if any(name in item.values for item in items)]:
        parts.append(
            f"<h2>Each edit</h2>{picture(histograms(items, columns), 'histograms of the metrics')}"
        )
    parts.append("<h2>Clips: source, edit</h2>")
    parts += [
        section(task.instruction, task.id, uri(animation(clip, fps), "webp"))
        for task, clip, fps in shown
    ]
    for heading, ids in notes.items():
        if ids:
            parts.append(f"<h2>{heading}: {len(ids)}</h2>{rows(ids)}")
    return html_page(parts)


def html_page(parts: Iterable[str]) -> str:
    """A page of its own."""
    head = f'<meta charset="utf-8"><title>Evaluation</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'


def facts(record: dict) -> str:
    return rows({key: json.dumps(value) for key, value in record.items()})


def rows(words: dict[str, str]) -> str:
    """A table of two columns."""
    return f"<table>{''.join(f'<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>' for key, value in words.items())}</table>"


def section(title: str, alt: str, source: str) -> str:
    """A clip under its words."""
    return f'<section><p>{html.escape(title)}</p><img alt="{html.escape(alt)}" src="{source}"></section>'


def types_table(types: dict[str, dict]) -> str:
    """A row a metric, a column a type."""
    names = dict.fromkeys(name for found in types.values() for name in found)
    head = "".join(f"<th>{html.escape(kind)}</th>" for kind in types)
    lines = [
        f"<tr><td>{METRICS[name].title}</td>{''.join(cell(found.get(name, {}).get('edited')) for found in types.values())}</tr>"
        for name in names
    ]
    return f"<table><tr><th>metric, of the edited clips</th>{head}</tr>{''.join(lines)}</table>"


def table(found: dict[str, dict]) -> str:
    """A row a metric."""
    rows = []
    for name, entry in found.items():
        cells = [cell(entry["numbers"].get(key)) for key in ("edited", "source", "gap")]
        without = [f"{count} without: {reason}" for reason, count in entry["without"].items()]
        hashes = [
            f"weights {file} {digest[:12]}" for file, digest in (entry["weights"] or {}).items()
        ]
        words = [
            entry["definition"],
            f"as {entry['reference']}",
            *hashes,
            *without,
            *filter(None, [entry["note"]]),
        ]
        about = "<br>".join(map(html.escape, words))
        head = f"<b>{html.escape(entry['title'])}</b><br>{html.escape(entry['unit'])}<br>{html.escape(entry['better'])} is better"
        rows.append(
            f'<tr id="{name}"><td>{head}</td>{"".join(cells)}<td class="number">{size(entry["numbers"])}</td><td>{about}</td></tr>'
        )
    head = "<tr><th>metric</th><th>edited [95%]</th><th>source</th><th>gap [95%]</th><th>N</th><th>definition</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def cell(value) -> str:
    return f'<td class="number">{number(value)}</td>'


def number(value) -> str:
    """ "12.3 [11.9, 12.7]"; a number alone, a set's distance, has no interval."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value:.4g}"
    low_high = "" if value["interval"] is None else " [{:.4g}, {:.4g}]".format(*value["interval"])
    return ("exact" if np.isinf(value["mean"]) else f"{value['mean']:.4g}") + low_high


def size(numbers: dict) -> str:
    frames = [
        f"{numbers[key]} {key.replace('_', ' ')}"
        for key in ("sources", "frames", "edited_frames", "source_frames")
        if key in numbers
    ]
    return "<br>".join([f"{numbers['clips']} clips", *frames])


def text(found: dict[str, dict]) -> str:
    """The table as Markdown."""
    lines = [
        "| metric | unit | edited [95%] | source | gap [95%] | clips | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in found.values():
        numbers = entry["numbers"]
        without = [f"{count} without: {reason}" for reason, count in entry["without"].items()]
        values = [number(numbers.get(key)) for key in ("edited", "source", "gap")]
        cells = [
            entry["title"],
            entry["unit"],
            *values,
            str(numbers["clips"]),
            "; ".join([*filter(None, [entry["note"]]), *without]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def histograms(items: Sequence[ClipItem], names: Sequence[str]) -> Image.Image:
    """Of each metric, over the edits; beside it that of the sources."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(names) // 4)
    figure, axes = pyplot.subplots(
        rows, 4, figsize=(12, 2.6 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        groups = {}
        for key in ("edited", "source"):
            values = [
                float(METRICS[name].summary(np.array([item.values[name][key]])))
                for item in items
                if key in item.values.get(name, ())
            ]
            groups |= (
                {key: shown} if (shown := [value for value in values if np.isfinite(value)]) else {}
            )
        if groups:
            axis.hist(list(groups.values()), bins=20, label=list(groups))
            axis.legend(fontsize=7)
        axis.set_title(METRICS[name].title, fontsize=9)
        axis.set_xlabel(METRICS[name].unit, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    pyplot.close(figure)
    return Image.open(out)


def animation(clip: np.ndarray, fps: float) -> bytes:
    """[T, H, W, 3] uint8 as an animated WebP, which browsers show without a player; small clips are enlarged by whole numbers."""
    height, width = clip.shape[1:3]
    scale = SIDE / height
    shape = (
        (height * max(1, int(scale)), width * max(1, int(scale)))
        if scale >= 1
        else (round(height * scale), round(width * scale))
    )
    nearest = [
        np.asarray(Image.fromarray(frame).resize(shape[::-1], Image.Resampling.NEAREST))
        if scale >= 1
        else resize(frame, shape)
        for frame in clip
    ]
    first, *others = map(Image.fromarray, nearest)
    out = io.BytesIO()
    first.save(
        out,
        format="WEBP",
        save_all=True,
        append_images=others,
        duration=max(20, round(1000 / fps)),
        loop=0,
        quality=85,
    )
    return out.getvalue()


def picture(image: Image.Image, words: str) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return f'<img alt="{words}" src="{uri(out.getvalue(), "png")}">'


def uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
