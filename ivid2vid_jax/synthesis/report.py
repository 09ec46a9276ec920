"""The page of a data-engine run: contact sheets of accepted and rejected edits, and histograms of their scores."""

import base64
import html
import io
import json

import numpy as np

from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.utils.atomic import atomic_write_text
from ivid2vid_jax.video import compare

SHOWN = 24  # contact sheets of accepted edits on the page, and as many of rejected ones


def page(engine: Engine, kept: set[str], dropped: dict[str, str], found: dict) -> None:
    """One file that shows contact sheets of accepted and rejected edits and histograms of their scores."""
    manifest = engine.manifest("scores")
    lines = [manifest.lines[id] for id in sorted(engine.score_marks) if id in manifest.lines]
    accepted, rejected = (
        [line for line in lines if line["id"] in kept],
        [line for line in lines if line["id"] not in kept],
    )
    parts = [
        f"<h1>{html.escape(str(engine.folder))}</h1><pre>{html.escape(json.dumps(found, indent=1))}</pre><h2>Scores</h2>",
        picture(histograms(accepted, rejected)),
    ]
    for title, group in (("Accepted", accepted), ("Rejected", rejected)):
        parts.append(f"<h2>{title}: {len(group)}</h2>")
        for i in np.unique(
            np.linspace(0, len(group) - 1, min(SHOWN, len(group))).round().astype(int)
        ):
            line, edit = group[i], engine.jobs[group[i]["id"]]
            clips = (engine.clip(edit.clip), engine.edited(edit.id))
            shown = np.unique(
                np.linspace(0, len(clips[0]) - 1, min(8, len(clips[0]))).round().astype(int)
            )
            reason = line.get("reason") or dropped.get(line["id"], "")
            sheet = compare.contact_sheet(
                [tuple(clip[frame] for clip in clips) for frame in shown], edit.instruction
            )
            scores = ", ".join(f"{name} {value:.2f}" for name, value in line["scores"].items())
            words = " ".join(
                f"<p>{html.escape(text)}</p>"
                for text in (edit.id, f"{edit.caption} → {edit.edited_caption}", scores, reason)
                if text
            )
            parts.append(
                f"<section><h3>{html.escape(edit.instruction)}</h3>{picture(sheet)}{words}</section>"
            )
    style = "body{font:14px sans-serif;max-width:1100px;margin:2em auto}section{border-top:1px solid #ccc;padding:1em 0}p{margin:.2em 0}img{max-width:100%}"
    document = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Synthesised triplets</title><style>{style}</style>{"".join(parts)}</html>\n'
    atomic_write_text(engine.folder / "index.html", document)


def histograms(accepted: list[dict], rejected: list[dict]):
    """Of each score, both groups; a PIL image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    names = list((accepted or rejected)[0]["scores"])
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(3 * len(names), 2.6), layout="constrained"
    )
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
