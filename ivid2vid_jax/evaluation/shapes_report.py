"""What an evaluation on the shapes world leaves beside its tables: report.json and items.csv with what each number is, index.html to read and to look at."""

import csv
import dataclasses
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ivid2vid_jax.data import shapes as world
from ivid2vid_jax.evaluation import report, shapes_benchmark
from ivid2vid_jax.utils.atomic import atomic_path

DEFINITIONS = {
    "passed": "the edit is shown and the rest is kept, by the checker of the shapes world (data/shapes/checker.py), which knows the scene; share of clips, Wilson's 95% interval",
    "edit shown (success)": "what was asked is shown in every frame: it is nearer to the true edit than to the other scenes that the checker tries",
    "rest kept (preserved)": "the rest is as it was, block by block",
    "PSNR to truth (psnr)": "dB of the squared error to the true edit, pooled over clips; 95% interval by resampling clips",
    "PSNR outside (psnr_outside)": "the same to the source, over the pixels that the true edit leaves as they are",
    "flicker": "mean absolute error, grey levels 0 to 255, of the change from frame to frame, against that of the true edit",
    "frame difference (difference, difference_truth; their gap)": "mean absolute change from frame to frame, grey levels, beside the true edit's: lower alone rewards frozen clips",
    "warping error (warping, warping_truth)": "Lai et al. 2018 with OpenCV's Farneback flow of the source (evaluation/flow.py), beside the true edit's; squared, values 0 to 1; in report.json and items.csv",
}


def write(
    output: Path,
    record: dict,
    items: Sequence[shapes_benchmark.ShapesItem],
    found: dict,
    shown: Sequence[tuple[str, Path]],
    pictures: Sequence[Path] = (),
) -> None:
    """found: `shapes.report`'s. shown: (words, animation of source, edit and truth side by side). pictures: more plots."""
    document = record | {"definitions": DEFINITIONS, "report": found}
    with atomic_path(output / "report.json") as file:
        file.write_text(json.dumps(report.to_jsonable(document), indent=2) + "\n")
    with atomic_path(output / "items.csv") as file, open(file, "w", newline="") as out:
        rows = csv.DictWriter(
            out, [field.name for field in dataclasses.fields(shapes_benchmark.ShapesItem)]
        )
        rows.writeheader()
        rows.writerows(map(dataclasses.asdict, items))
    with atomic_path(output / "index.html") as file:
        file.write_text(page(record, items, found, shown, pictures))


def page(
    record: dict,
    items: Sequence[shapes_benchmark.ShapesItem],
    found: dict,
    shown: Sequence[tuple[str, Path]],
    pictures: Sequence[Path],
) -> str:
    parts = [
        f"<h1>Evaluation of {len(items)} edits, shapes world</h1>{report.facts(record)}<h2>Shares and means</h2>{tables(shapes_benchmark.table(found))}"
    ]
    parts.append(
        f"<h2>Edits that pass, 95% intervals</h2>{report.picture(bars(found), 'shares of edits that pass')}"
    )
    for file in pictures:
        with Image.open(file) as image:
            parts.append(report.picture(image, file.stem))
    parts.append("<h2>Clips: source, edit, truth</h2>" if shown else "")
    parts += [
        report.section(words, file.stem, report.uri(file.read_bytes(), "gif"))
        for words, file in shown
    ]
    return report.html_page([*parts, f"<h2>What the numbers are</h2>{report.rows(DEFINITIONS)}"])


def tables(markdown: str) -> str:
    """Of Markdown's tables, which have an empty line between them."""
    found = []
    for block in markdown.split("\n\n"):
        head, _, *body = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        )
        lines = [
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
            for tag, row in (("th", head), *(("td", row) for row in body))
        ]
        found.append(f"<p><table>{''.join(lines)}</table></p>")
    return "".join(found)


def bars(found: dict) -> Image.Image:
    """Of every editor, and of the first one's kinds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = next(iter(found))
    groups = (
        {name: each["all"] for name, each in found.items()},
        {kind: each for kind, each in found[first].items() if kind != "all"},
    )
    figure, axes = pyplot.subplots(
        1, 2, figsize=(12, 1.2 + 0.3 * max(map(len, groups))), layout="constrained"
    )
    for axis, group, title in zip(
        axes, groups, ("each editor, all kinds", f"{first}, each kind"), strict=True
    ):
        shares = np.array([each["passed"]["share"] for each in group.values()])
        spread = np.abs(
            np.array([each["passed"]["interval"] for each in group.values()]).T - shares
        )
        axis.barh(list(group), 100 * shares, xerr=100 * spread, capsize=3)
        axis.set(xlim=(0, 100), xlabel="% passed", title=title)
        axis.invert_yaxis()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    pyplot.close(figure)
    return Image.open(out)


def clips(
    items: Sequence[shapes_benchmark.ShapesItem],
    specs: Sequence[tuple[str, int, world.Spec]],
    file: Callable[[shapes_benchmark.ShapesItem], Path],
    count: int,
) -> list[tuple[str, Path]]:
    """At most `count` of the items that have an animation, spread over them, with their instructions and what came out."""
    known = {(kind, index): spec for kind, index, spec in specs}
    there = [item for item in items if item.editor == "model" and file(item).is_file()]
    chosen = [
        there[i]
        for i in np.unique(
            np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(int)
        )
    ]
    told = ((item, world.triplet(known[item.kind, item.index]).instruction) for item in chosen)
    return [
        (f"{instruction} ({item.kind}: {'passed' if item.passed else 'failed'})", file(item))
        for item, instruction in told
    ]
