"""The report of an evaluation on the shapes world: report.json, items.csv and index.html."""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ivid2vid_jax.data import shapes as world
from ivid2vid_jax.evaluation import page_parts, report, shapes_benchmark
from ivid2vid_jax.evaluation.shapes_benchmark import ShapesItem
from ivid2vid_jax.utils.atomic import atomic_path


@dataclasses.dataclass(frozen=True)
class Definition:
    """What a number is.

    Attributes:
        key: in report.json.
        title: on the page.
        text: the definition.
    """

    key: str
    title: str
    text: str


DEFINITIONS = (
    Definition(
        "passed",
        "passed",
        "the edit is shown and the rest is preserved, by the checker of the shapes world "
        "(data/shapes/checker.py), which knows the scene; share of clips, Wilson's 95% interval",
    ),
    Definition(
        "edit shown (success)",
        "edit shown (success)",
        "every frame is nearer to the true edit than to the other scenes that the checker tries",
    ),
    Definition(
        "rest kept (preserved)",
        "rest preserved (preserved)",
        "every block outside the edit is as in the source",
    ),
    Definition(
        "PSNR to truth (psnr)",
        "PSNR to true edit (psnr)",
        "dB of the mean squared error to the true edit over all clips; 95% bootstrap interval over "
        "clips",
    ),
    Definition(
        "PSNR outside (psnr_outside)",
        "PSNR outside the edit (psnr_outside)",
        "the same to the source, over the pixels that the true edit does not change",
    ),
    Definition(
        "flicker",
        "flicker",
        "mean absolute error of the frame-to-frame change against that of the true edit, grey "
        "levels 0 to 255",
    ),
    Definition(
        "frame difference (difference, difference_truth; their gap)",
        "frame difference (difference, difference_truth; gap)",
        "mean absolute change from frame to frame, grey levels, that of the true edit, and their "
        "difference; a lower value alone rewards frozen clips",
    ),
    Definition(
        "warping error (warping, warping_truth)",
        "warping error (warping, warping_truth)",
        "Lai et al. 2018 with OpenCV's Farneback flow of the source (evaluation/flow.py), and that "
        "of the true edit; squared, values 0 to 1; only in report.json and items.csv",
    ),
    Definition(
        "contour",
        "contour",
        "mean distance of the object's outline to the true one, pixels: the area between both "
        "outlines over the length of the true one; where the true edit shows one plain object on "
        "a flat background",
    ),
    Definition(
        "valid, consistent",
        "valid, consistent",
        "free edits, whose sentence leaves the value open: share of clips whose every frame shows "
        "some right result, and whose frames all show the same one; passed needs both. Other "
        "numbers of a free edit compare with the right result that most frames are nearest to",
    ),
)


def write(
    output: Path,
    record: dict[str, Any],
    items: Sequence[ShapesItem],
    results: dict[str, dict[str, Any]],
    clips: Sequence[tuple[str, Path]],
    plots: Sequence[Path] = (),
) -> None:
    """Writes the report.

    Args:
        output: the folder.
        record: what was evaluated and with which settings.
        items: of all editors.
        results: of `shapes_benchmark.report`.
        clips: (title, GIF of source, edit and true edit side by side).
        plots: more images for the page.
    """
    definitions = {definition.key: definition.text for definition in DEFINITIONS}
    document = record | {"definitions": definitions, "report": results}
    with atomic_path(output / "report.json") as file:
        file.write_text(json.dumps(report.to_jsonable(document), indent=2) + "\n")
    with atomic_path(output / "items.csv") as file, file.open("w", newline="") as out:
        writer = csv.DictWriter(out, [field.name for field in dataclasses.fields(ShapesItem)])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, items))
    with atomic_path(output / "index.html") as file:
        file.write_text(page(record, len(items), results, clips, plots))


def page(
    record: dict[str, Any],
    count: int,
    results: dict[str, dict[str, Any]],
    clips: Sequence[tuple[str, Path]],
    plots: Sequence[Path],
) -> str:
    """The HTML page; count: of the edits."""
    parts = [
        f"<h2>Results</h2>{html_tables(shapes_benchmark.table(results))}",
        f"<h2>Share of edits that pass, with 95% intervals</h2>{bar_plots(results)}",
    ]
    for file in plots:
        with Image.open(file) as image:
            parts.append(page_parts.image_tag(image, file.stem))
    parts.append("<h2>Clips</h2>" if clips else "")
    for title, file in clips:
        picture = page_parts.data_uri(file.read_bytes(), "gif")
        labels = ("source", "edit", "truth")
        parts.append(page_parts.clip_section(title, file.stem, picture, labels))
    definitions = {definition.title: definition.text for definition in DEFINITIONS}
    parts += [
        page_parts.folded("Definitions", page_parts.definition_table(definitions)),
        page_parts.folded("Settings and weights", page_parts.record_table(record)),
    ]
    return page_parts.html_page(f"Evaluation of {count} edits of the shapes world", parts)


def html_tables(markdown: str) -> str:
    """Converts Markdown tables, separated by empty lines."""
    tables = []
    for block in markdown.split("\n\n"):
        head, _, *body = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        )
        tables.append(f"{page_parts.table(head, body)}<br>")
    return "".join(tables)


def bar_plots(results: dict[str, dict[str, Any]]) -> str:
    """A chart: shares of passed edits, by editor and by kind of edit of the first editor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = next(iter(results))
    groups = {
        "all kinds of edit, by editor": {name: kinds["all"] for name, kinds in results.items()},
        f"{first}, by kind of edit": {
            kind: summary for kind, summary in results[first].items() if kind != "all"
        },
    }
    height = 1.2 + 0.3 * max(map(len, groups.values()))
    figure, axes = pyplot.subplots(1, 2, figsize=(12, height), layout="constrained")
    for axis, (title, group) in zip(axes, groups.items(), strict=True):
        shares = np.array([summary["passed"]["share"] for summary in group.values()])
        intervals = np.array([summary["passed"]["interval"] for summary in group.values()])
        errors = np.abs(intervals.T - shares)
        axis.barh(list(group), 100 * shares, xerr=100 * errors, capsize=3)
        axis.set(xlim=(0, 100), xlabel="passed, %", title=title)
        axis.invert_yaxis()
    return page_parts.chart(figure, "shares of edits that pass")


def clips(
    items: Sequence[ShapesItem],
    specs: Sequence[tuple[str, int, world.Spec]],
    file: Callable[[ShapesItem], Path],
    count: int,
) -> list[tuple[str, Path]]:
    """(title, animation) of at most `count` of the model's clips, evenly spaced.

    Args:
        items: of all editors.
        specs: (kind, index, spec) of the items.
        file: the path of an item's animation, which need not exist.
        count: the most clips to show.
    """
    by_key = {(kind, index): spec for kind, index, spec in specs}
    animated = [item for item in items if item.editor == "model" and file(item).is_file()]
    positions = np.linspace(0, len(animated) - 1, min(count, len(animated)))
    result = []
    for i in np.unique(positions.round().astype(int)):
        item = animated[i]
        instruction = world.triplet(by_key[item.kind, item.index]).instruction
        verdict = "passed" if item.passed else "failed"
        result.append((f"{instruction} ({item.kind}: {verdict})", file(item)))
    return result
