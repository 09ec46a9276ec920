"""The benchmark: editing of held-out clips of the shapes world, where the true edit is known and `shapes.check` judges from pixels.

    items = run(editors(pipe, settings), kinds=KINDS, count=40, file=Path("items.jsonl"))
    print(table(items))

Every number hangs on (editor, kind, index) alone, so a stopped run goes on where it was, and two runs can be compared item by item.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import flax
import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.evaluation import flow
from ivid2vid_jax.evaluation.fidelity import psnr
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.utils import jsonl
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import bootstrap_interval, wilson_interval
from ivid2vid_jax.weights.torch_keys import torch_key

SEED = 1_000_003  # of the benchmark's clips: no training uses it, and the combinations are held out besides
Editor = Callable[[Triplet], np.ndarray]  # the edited clip, [T, H, W, 3] uint8


@dataclasses.dataclass(frozen=True)
class ShapesItem:
    """One edited clip, judged.

    passed, success, preserved, nearest: `shapes.Verdict`'s. error: mean squared error (grey levels squared) to the true edit; error_outside:
    to the source, where the edit must change nothing, None where there is no such place. difference, difference_truth: mean absolute
    difference of consecutive frames (grey levels) of the edited and of the true clip; flicker: the mean absolute error of that difference.
    warping, warping_truth: `flow.warping_error` of both by the source's flow, None without OpenCV.
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


def specs(
    kinds: Sequence[str],
    count: int,
    size: int,
    frames: int,
    world: str = "shapes",
    phrasings: tuple[int, ...] = (),
) -> Iterator[tuple[str, int, shapes.Spec]]:
    """(kind, index, spec), `count` held-out ones of each kind, said in the sentences of these numbers (() = all)."""
    for kind in kinds:
        place = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "big")
        for index in range(count):
            yield (
                kind,
                index,
                shapes.sample_spec(
                    SEED, place + index, "eval", (kind,), size, frames, world, phrasings
                ),
            )


def evaluate_edit(
    editor: str, kind: str, index: int, spec: shapes.Spec, truth: Triplet, edited: np.ndarray
) -> ShapesItem:
    verdict = shapes.check(truth.source, edited, spec)
    source, wanted, found = (
        np.asarray(clip, np.float32) for clip in (truth.source, truth.edited, edited)
    )
    outside = (
        None
        if truth.mask is None or truth.mask.all()
        else float(np.square(found - source)[~truth.mask].mean())
    )
    moves, wanted_moves = np.diff(found, axis=0), np.diff(wanted, axis=0)
    warping, warping_truth = warping_errors(truth.source, edited, truth.edited)
    return ShapesItem(
        editor,
        kind,
        index,
        verdict.passed,
        verdict.success,
        verdict.preserved,
        verdict.nearest,
        error=float(np.square(found - wanted).mean()),
        error_outside=outside,
        difference=mean(np.abs(moves)),
        difference_truth=mean(np.abs(wanted_moves)),
        flicker=mean(np.abs(moves - wanted_moves)),
        warping=warping,
        warping_truth=warping_truth,
    )


def mean(values: np.ndarray) -> float:
    """Of nothing, which is what moves in a single frame: 0."""
    return float(values.mean()) if values.size else 0.0


def warping_errors(source: np.ndarray, *clips: np.ndarray) -> list[float | None]:
    """Of each clip by the source's flow; None where that cannot be had: without OpenCV, or where nothing can be followed."""
    try:
        there = flow.forward(source)
        seen = flow.visible(there, flow.backward(source))
        return [flow.warping_error(clip, there, seen) for clip in clips]
    except UserError:
        return [None] * len(clips)


def editors(pipe: Pipeline, settings: EditSettings) -> dict[str, Editor]:
    """By name: "model"; what it is measured against: "per frame", the same net without its temporal layers, and "copy", the source itself;
    and "vae", the true edit through the autoencoder: no editor of this pipeline can do better. settings: resolved.
    """
    return {
        "model": editor(pipe, settings),
        "per frame": editor(drop_temporal(pipe), settings),
        "copy": lambda truth: truth.source,
        "vae": lambda truth: pipe.reconstruct(truth.edited),
    }


def editor(pipe: Pipeline, settings: EditSettings) -> Editor:
    """What the pipeline makes of a triplet's source and instruction."""
    return lambda truth: pipe.edit(truth.source, truth.instruction, **vars(settings))


def drop_temporal(pipe: Pipeline) -> Pipeline:
    """The same net, its temporal layers left out."""
    flat = flax.traverse_util.flatten_dict(pipe.params["unet"])
    spatial = {path: leaf for path, leaf in flat.items() if not is_temporal_key(torch_key(path))}
    folder = dataclasses.replace(
        pipe.folder, unet=dataclasses.replace(pipe.folder.unet, temporal=())
    )
    return dataclasses.replace(
        pipe,
        folder=folder,
        params=pipe.params | {"unet": flax.traverse_util.unflatten_dict(spatial)},
    )


def run_benchmark(
    judged: dict[str, Editor],
    wanted: Sequence[tuple[str, int, shapes.Spec]],
    file: Path,
    show: Callable | None = None,
    progress: Callable | None = None,
) -> list[ShapesItem]:
    """Judges every editor on every spec; one line of `file` an item, and those that are there already are not made again.

    show(item, truth, edited) sees each new clip; progress(done, total).
    """
    done = {(item.editor, item.kind, item.index): item for item in read(file)}
    missing = [
        (kind, index, spec)
        for kind, index, spec in wanted
        if any((name, kind, index) not in done for name in judged)
    ]
    total, made = (
        len(wanted) * len(judged),
        sum((name, kind, index) in done for name in judged for kind, index, _ in wanted),
    )
    with jsonl.open_append(file) as out:
        for kind, index, spec in missing:
            truth = shapes.triplet(spec)
            for name, edit in judged.items():
                if (name, kind, index) in done:
                    continue
                edited = edit(truth)
                item = done[name, kind, index] = evaluate_edit(
                    name, kind, index, spec, truth, edited
                )
                out.write(json.dumps(dataclasses.asdict(item)) + "\n")
                out.flush()
                made += 1
                if show:
                    show(item, truth, edited)
                if progress:
                    progress(made, total)
    return [done[name, kind, index] for name in judged for kind, index, _ in wanted]


def read(file: Path) -> list[ShapesItem]:
    """The items of a file; a last line that was cut off is left out."""
    return [ShapesItem(**json.loads(line)) for line in jsonl.read_complete_lines(file)]


def summary(items: Iterable[ShapesItem]) -> dict:
    """What is told of a group of items: shares and means, each with its 95% interval."""
    items = list(items)
    count, out = len(items), {"count": len(items)}
    for name in ("passed", "success", "preserved"):
        number = sum(getattr(item, name) for item in items)
        out[name] = {"share": number / count, "interval": wilson_interval(number, count)}
    outside = [item.error_outside for item in items if item.error_outside is not None]
    for name, errors in (("psnr", [item.error for item in items]), ("psnr_outside", outside)):
        if errors:
            out[name] = {
                "db": float(psnr(np.asarray(errors))),
                "interval": bootstrap_interval(errors, psnr) if all(errors) else None,
            }
    told = {
        name: [getattr(item, name) for item in items]
        for name in ("difference", "difference_truth", "flicker", "warping", "warping_truth")
    }
    told["gap"] = [item.difference - item.difference_truth for item in items]
    for name, values in told.items():
        if values := [value for value in values if value is not None]:
            out[name] = {
                "mean": float(np.mean(values)),
                "interval": bootstrap_interval(values, lambda drawn: drawn.mean(-1)),
            }
    return out


def report(items: Iterable[ShapesItem]) -> dict:
    """{editor: {"all": summary, kind: summary, ...}}."""
    items = list(items)
    out = {}
    for editor in dict.fromkeys(item.editor for item in items):
        own = [item for item in items if item.editor == editor]
        groups = {
            kind: [item for item in own if item.kind == kind]
            for kind in dict.fromkeys(item.kind for item in own)
        }
        out[editor] = {"all": summary(own)} | {
            kind: summary(group) for kind, group in groups.items()
        }
    return out


def table(found: dict) -> str:
    """A report as Markdown: all kinds of every editor, then each kind of the first editor."""
    head = "| {} | clips | passed [95%] | edit shown | rest kept | PSNR to truth | PSNR outside | flicker | frame difference (truth's) |"
    rule = "|---|---|---|---|---|---|---|---|---|"
    first = next(iter(found))
    blocks = [head.format("editor"), rule, *(row(name, found[name]["all"]) for name in found), ""]
    blocks += [
        head.format(f"kind, {first}"),
        rule,
        *(row(kind, found[first][kind]) for kind in found[first] if kind != "all"),
    ]
    return "\n".join(blocks)


def row(name: str, s: dict) -> str:
    low, high = s["passed"]["interval"]
    decibels = [
        f"{s[key]['db']:.1f}"
        if key in s and np.isfinite(s[key]["db"])
        else "exact"
        if key in s
        else ""
        for key in ("psnr", "psnr_outside")
    ]
    shares = [
        f"{100 * s['passed']['share']:.1f}% [{100 * low:.0f}, {100 * high:.0f}]",
        *(f"{100 * s[key]['share']:.1f}%" for key in ("success", "preserved")),
    ]
    moves = [
        f"{s['flicker']['mean']:.2f}",
        f"{s['difference']['mean']:.2f} ({s['difference_truth']['mean']:.2f})",
    ]
    return "| " + " | ".join([name, str(s["count"]), *shares, *decibels, *moves]) + " |"
