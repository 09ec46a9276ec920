"""The shapes benchmark: edits of held-out clips of the shapes world, where the true edit is known.

`shapes.check` decides from the pixels whether an edit passes.

    clips = list(specs(KINDS, count=40, size=64, frames=16))
    items = run_benchmark(editors(pipe, settings), clips, Path("items.jsonl"))
    print(table(report(items)))

Every number depends only on (editor, kind, index), so a stopped run continues where it was, and
two runs can be compared item by item.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax
import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import flow
from ivid2vid_jax.evaluation.contours import contour_distance
from ivid2vid_jax.evaluation.fidelity import psnr
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.utils import jsonl
from ivid2vid_jax.utils.intervals import bootstrap_interval, wilson_interval
from ivid2vid_jax.weights.torch_keys import torch_key

# Seed of the benchmark's clips. No training uses it, and their combinations are held out besides.
SEED = 1_000_003
Editor = Callable[[Triplet], np.ndarray]  # returns the edited clip, [T, H, W, 3] uint8
Progress = Callable[[int, int], None]  # (done, total)
MEAN_FIELDS = ("difference", "difference_truth", "flicker", "warping", "warping_truth", "contour")
SHARE_FIELDS = ("passed", "success", "preserved", "valid", "consistent")


@dataclasses.dataclass(frozen=True)
class ShapesItem:
    """Metrics of one edited clip.

    Attributes:
        editor: name of the editor.
        kind: kind of edit.
        index: number of the clip within its kind.
        passed: the edit is shown and the rest is preserved (`shapes.Verdict`).
        success: the edit is shown.
        preserved: the rest is preserved.
        nearest: the candidate scene that the edited clip is nearest to.
        error: mean squared error to the true edit, grey levels squared. Of a free edit, the true
            edit is the right result that most frames are nearest to; so below.
        error_outside: the same to the source, where the edit must change nothing; None if there
            are no such pixels.
        difference: mean absolute difference of consecutive frames, grey levels.
        difference_truth: the same of the true edit.
        flicker: mean absolute error of the frame-to-frame difference against the true edit's.
        warping: `flow.warping_error` by the source's flow; None without OpenCV.
        warping_truth: the same of the true edit.
        contour: mean distance of the object's outline to the true one, pixels; None without one.
        valid: a free edit: every frame passes with some right result; None for other kinds.
        consistent: a free edit: all frames show the same result; None for other kinds.
    """

    editor: str
    kind: str
    index: int
    passed: bool
    success: bool
    preserved: bool
    nearest: str
    error: float
    error_outside: float | None
    difference: float
    difference_truth: float
    flicker: float
    warping: float | None = None
    warping_truth: float | None = None
    contour: float | None = None
    valid: bool | None = None
    consistent: bool | None = None


def specs(
    kinds: Sequence[str],
    count: int,
    size: int,
    frames: int,
    world: str = "shapes",
    phrasings: tuple[int, ...] = (),
) -> Iterator[tuple[str, int, shapes.Spec]]:
    """Yields (kind, index, spec): `count` held-out clips of each kind.

    Args:
        kinds: kinds of edit.
        count: clips of each kind.
        size: pixels of the clip's side.
        frames: frames of a clip.
        world: a name of `shapes.WORLDS`.
        phrasings: indices of the sentence templates of the instructions; () means all.
    """
    for kind in kinds:
        offset = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "big")
        for index in range(count):
            spec = shapes.sample_spec(
                SEED, offset + index, "eval", (kind,), size, frames, world, phrasings
            )
            yield kind, index, spec


def evaluate_edit(
    editor: str, kind: str, index: int, spec: shapes.Spec, truth: Triplet, edited: np.ndarray
) -> ShapesItem:
    """Computes the metrics of one edited clip, [T, H, W, 3] uint8."""
    verdict = shapes.check(truth.source, edited, spec)
    is_free = kind in shapes.FREE_KINDS
    if is_free:
        truth = shapes.triplet(verdict.spec)
    source, target, output = (
        np.asarray(clip, np.float32) for clip in (truth.source, truth.edited, edited)
    )
    outside = (
        None
        if truth.mask is None or truth.mask.all()
        else float(np.square(output - source)[~truth.mask].mean())
    )
    output_steps, target_steps = np.diff(output, axis=0), np.diff(target, axis=0)
    warping, warping_truth = warping_errors(truth.source, edited, truth.edited)
    return ShapesItem(
        editor,
        kind,
        index,
        verdict.passed,
        verdict.success,
        verdict.preserved,
        verdict.nearest,
        error=float(np.square(output - target).mean()),
        error_outside=outside,
        difference=mean_or_zero(np.abs(output_steps)),
        difference_truth=mean_or_zero(np.abs(target_steps)),
        flicker=mean_or_zero(np.abs(output_steps - target_steps)),
        warping=warping,
        warping_truth=warping_truth,
        contour=contour_distance(edited, verdict.spec),
        valid=verdict.valid if is_free else None,
        consistent=verdict.consistent if is_free else None,
    )


def mean_or_zero(values: np.ndarray) -> float:
    """The mean; 0 of no values, as for the frame differences of a single frame."""
    return float(values.mean()) if values.size else 0.0


def warping_errors(source: np.ndarray, *clips: np.ndarray) -> list[float | None]:
    """Warping error of each clip by the source's flow.

    None where it cannot be computed: without OpenCV, or where no pixel can be followed.
    """
    try:
        source_flow = flow.forward(source)
        mask = flow.visible(source_flow, flow.backward(source))
        return [flow.warping_error(clip, source_flow, mask) for clip in clips]
    except UserError:
        return [None] * len(clips)


def editors(pipe: Pipeline, settings: EditSettings) -> dict[str, Editor]:
    """The model and its baselines by name; settings must be resolved.

    "model": the pipeline. "per frame": the same net without its temporal layers. "copy": the source
    itself. "vae": the true edit through the autoencoder, an upper bound for this pipeline.
    """
    return {
        "model": editor(pipe, settings),
        "per frame": editor(drop_temporal(pipe), settings),
        "copy": lambda truth: truth.source,
        "vae": lambda truth: pipe.reconstruct(truth.edited),
    }


def editor(pipe: Pipeline, settings: EditSettings) -> Editor:
    """The pipeline as an editor of a triplet's source clip by its instruction."""
    return lambda truth: pipe.edit(truth.source, truth.instruction, **vars(settings))


def drop_temporal(pipe: Pipeline) -> Pipeline:
    """The same pipeline without temporal layers in its U-Net."""
    flat = flax.traverse_util.flatten_dict(pipe.params["unet"])
    spatial = {path: leaf for path, leaf in flat.items() if not is_temporal_key(torch_key(path))}
    folder = dataclasses.replace(
        pipe.folder, unet=dataclasses.replace(pipe.folder.unet, temporal=())
    )
    params = pipe.params | {"unet": flax.traverse_util.unflatten_dict(spatial)}
    return dataclasses.replace(pipe, folder=folder, params=params)


def run_benchmark(
    editors: dict[str, Editor],
    specs: Sequence[tuple[str, int, shapes.Spec]],
    file: Path,
    show: Callable[[ShapesItem, Triplet, np.ndarray], None] | None = None,
    progress: Progress | None = None,
) -> list[ShapesItem]:
    """Evaluates every editor on every spec.

    Args:
        editors: by name.
        specs: (kind, index, spec).
        file: receives a JSON line per item; items that are there already are not edited again.
        show: called with each new item, its triplet and its edited clip.
        progress: called with (done, total).
    """
    done = {(item.editor, item.kind, item.index): item for item in read(file)}
    keys = [(name, kind, index) for name in editors for kind, index, _ in specs]
    finished = sum(key in done for key in keys)
    with jsonl.open_append(file) as out:
        for kind, index, spec in specs:
            missing = [name for name in editors if (name, kind, index) not in done]
            if not missing:
                continue
            truth = shapes.triplet(spec)
            for name in missing:
                edited = editors[name](truth)
                item = evaluate_edit(name, kind, index, spec, truth, edited)
                done[name, kind, index] = item
                out.write(json.dumps(dataclasses.asdict(item)) + "\n")
                out.flush()
                finished += 1
                if show:
                    show(item, truth, edited)
                if progress:
                    progress(finished, len(keys))
    return [done[key] for key in keys]


def read(file: Path) -> list[ShapesItem]:
    """The items of a file, without a last line that was cut off."""
    return [ShapesItem(**json.loads(line)) for line in jsonl.read_complete_lines(file)]


def summary(items: Iterable[ShapesItem]) -> dict[str, Any]:
    """Shares and means of a group of items, each with its 95% interval."""
    items = list(items)
    count = len(items)
    result: dict[str, Any] = {"count": count}
    for name in SHARE_FIELDS:
        if outcomes := [value for item in items if (value := getattr(item, name)) is not None]:
            result[name] = {
                "share": sum(outcomes) / len(outcomes),
                "interval": wilson_interval(sum(outcomes), len(outcomes)),
            }
    outside = [item.error_outside for item in items if item.error_outside is not None]
    for name, errors in (("psnr", [item.error for item in items]), ("psnr_outside", outside)):
        if errors:
            result[name] = {
                "db": float(psnr(np.asarray(errors))),
                "interval": bootstrap_interval(errors, psnr) if all(errors) else None,
            }
    columns = {name: [getattr(item, name) for item in items] for name in MEAN_FIELDS}
    columns["gap"] = [item.difference - item.difference_truth for item in items]
    for name, column in columns.items():
        if values := [value for value in column if value is not None]:
            result[name] = {
                "mean": float(np.mean(values)),
                "interval": bootstrap_interval(values, lambda samples: samples.mean(-1)),
            }
    return result


def report(items: Iterable[ShapesItem]) -> dict[str, dict[str, Any]]:
    """Returns {editor: {"all": summary, kind: summary, ...}}."""
    items = list(items)
    result = {}
    for editor in dict.fromkeys(item.editor for item in items):
        edits = [item for item in items if item.editor == editor]
        kinds = dict.fromkeys(item.kind for item in edits)
        result[editor] = {"all": summary(edits)} | {
            kind: summary(item for item in edits if item.kind == kind) for kind in kinds
        }
    return result


COLUMNS = (
    "clips",
    "passed [95%]",
    "edit shown",
    "rest preserved",
    "PSNR to true edit",
    "PSNR outside the edit",
    "flicker",
    "frame difference (true edit's)",
    "contour, px",
)
FREE_COLUMNS = ("clips", "passed [95%]", "valid in every frame", "consistent")


def table(report: dict[str, dict[str, Any]]) -> str:
    """A report as Markdown: all kinds of every editor, each kind of the first, and free edits."""
    first = next(iter(report))
    kinds = {kind: group for kind, group in report[first].items() if kind != "all"}
    free = [
        f"| {kind} | {editor} | " + " | ".join(free_cells(groups[kind])) + " |"
        for kind in kinds
        if kind in shapes.FREE_KINDS
        for editor, groups in report.items()
    ]
    return "\n".join(
        [
            *header("editor"),
            *(row(name, groups["all"]) for name, groups in report.items()),
            "",
            *header(f"kind, {first}"),
            *(row(kind, group) for kind, group in kinds.items()),
            *(["", *header("free edit", ("editor", *FREE_COLUMNS)), *free] if free else []),
        ]
    )


def header(first: str, columns: Sequence[str] = COLUMNS) -> list[str]:
    """The Markdown table's head, with this title of the first column."""
    return ["| " + " | ".join([first, *columns]) + " |", "|---" * (1 + len(columns)) + "|"]


def free_cells(group: dict[str, Any]) -> list[str]:
    """The cells of a summary of free edits."""
    return [
        str(group["count"]),
        percent(group["passed"]),
        *(f"{100 * group[key]['share']:.1f}%" for key in ("valid", "consistent")),
    ]


def percent(share: dict[str, Any]) -> str:
    """A share and its interval, e.g. "92.5% [80, 97]"."""
    low, high = share["interval"]
    return f"{100 * share['share']:.1f}% [{100 * low:.0f}, {100 * high:.0f}]"


def row(name: str, group: dict[str, Any]) -> str:
    """A summary as a row of the Markdown table."""
    cells = [
        name,
        str(group["count"]),
        percent(group["passed"]),
        *(f"{100 * group[key]['share']:.1f}%" for key in ("success", "preserved")),
        *(decibels(group.get(key)) for key in ("psnr", "psnr_outside")),
        f"{group['flicker']['mean']:.2f}",
        f"{group['difference']['mean']:.2f} ({group['difference_truth']['mean']:.2f})",
        f"{group['contour']['mean']:.2f}" if "contour" in group else "",
    ]
    return "| " + " | ".join(cells) + " |"


def decibels(psnr: dict[str, float] | None) -> str:
    """A PSNR in words: "exact" if infinite, "" if there is none."""
    if psnr is None:
        return ""
    return f"{psnr['db']:.1f}" if np.isfinite(psnr["db"]) else "exact"
