"""The HTML report of a data-engine run: score histograms, and contact sheets of edits."""

import base64
import html
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.utils.atomic import atomic_write_text
from ivid2vid_jax.video import compare

MAX_SHEETS = 24  # per group
FRAMES_PER_SHEET = 8
STYLE = """
body { font: 14px sans-serif; max-width: 1100px; margin: 2em auto }
section { border-top: 1px solid #ccc; padding: 1em 0 }
p { margin: .2em 0 }
img { max-width: 100% }
"""


def write_report(
    engine: Engine, selected: set[str], dropped: Mapping[str, str], statistics: dict[str, Any]
) -> None:
    """Writes OUTPUT/index.html, one file with all images in it.

    Args:
        engine: the run.
        selected: ids of the edits in the dataset.
        dropped: accepted edits that are not in the dataset: id -> reason.
        statistics: printed as JSON.
    """
    manifest = engine.scores.manifest()
    lines = [
        manifest.lines[id] for id in sorted(engine.scores.fingerprints) if id in manifest.lines
    ]
    groups = {
        "Accepted": [line for line in lines if line["id"] in selected],
        "Rejected": [line for line in lines if line["id"] not in selected],
    }
    parts = [
        f"<h1>{html.escape(str(engine.folder))}</h1>",
        f"<pre>{html.escape(json.dumps(statistics, indent=1))}</pre>",
        f"<h2>Scores</h2>{img_tag(histograms(*groups.values()))}",
    ]
    for title, group in groups.items():
        parts.append(f"<h2>{title}: {len(group)}</h2>")
        for index in evenly_spaced(len(group), MAX_SHEETS):
            line = group[index]
            reason = line.get("reason") or dropped.get(line["id"], "")
            parts.append(edit_section(engine, line, reason))
    atomic_write_text(
        engine.folder / "index.html",
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Synthesised triplets</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</html>\n",
    )


def edit_section(engine: Engine, line: dict, reason: str) -> str:
    """The HTML of one edit: its contact sheet, captions, scores, and why it was rejected."""
    edit = engine.edits.edits[line["id"]]
    clips = engine.workspace.read_clip(edit.clip), engine.workspace.read_edit(edit.id)
    frames = evenly_spaced(len(clips[0]), FRAMES_PER_SHEET)
    sheet = compare.contact_sheet(
        [tuple(clip[frame] for clip in clips) for frame in frames], edit.instruction
    )
    scores = ", ".join(f"{name} {value:.2f}" for name, value in line["scores"].items())
    texts = (edit.id, f"{edit.caption} → {edit.edited_caption}", scores, reason)
    paragraphs = " ".join(f"<p>{html.escape(text)}</p>" for text in texts if text)
    title = html.escape(edit.instruction)
    return f"<section><h3>{title}</h3>{img_tag(sheet)}{paragraphs}</section>"


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """At most `count` indices below `length`, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def histograms(accepted: list[dict], rejected: list[dict]) -> Image.Image:
    """A histogram of each score, with both groups stacked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list((accepted or rejected)[0]["scores"])
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(3 * len(names), 2.6), layout="constrained"
    )
    for axis, name in zip(axes, names, strict=True):
        values = [[line["scores"][name] for line in group] for group in (accepted, rejected)]
        axis.hist(values, bins=20, stacked=True, label=["accepted", "rejected"])
        axis.set_title(name)
    axes[0].legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    pyplot.close(figure)
    return Image.open(file)


def img_tag(image: Image.Image) -> str:
    """An <img> element with the image as a data URL."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
