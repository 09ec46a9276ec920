"""`evaluate` on a set of clips: makes the edits where a model is to be judged, measures them, writes the report or the A/B page."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ivid2vid_jax.data.readers import ClipSettings, common_size, read_fitted, read_pair
from ivid2vid_jax.data.shapes import WORLDS
from ivid2vid_jax.evaluation import ab_study, clip_metrics, clip_sets, inception, report
from ivid2vid_jax.evaluation.clip_scores import FETCH, FULL, load_clip
from ivid2vid_jax.evaluation.metrics import METRICS
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.errors import UserError, parse_shard
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.utils.versions import versions
from ivid2vid_jax.video.read import open_clip

log = logging.getLogger(__name__)

IDENTITY = "change nothing"
EDIT_RECORD = "made.json"  # beside the frames of an edit: what it was made from
GROWS = (
    "weights",
    "arithmetic",
)  # of the record: a later run may add metrics, and the weights that they need
WAYS_OUT = {
    "clip": f"--clip-model {FULL} (or a folder), fetched with: {FETCH}",
    "inception": f"--inception {inception.FILE}, fetched with: {inception.FETCH}",
}


def run(args, claim: Callable[[Path, dict, Sequence[str]], None]) -> None:
    """args: EvaluateArgs. claim(folder, record, grows): makes the output folder this evaluation's. UserError at the end, too, where a metric was left out."""
    if args.votes:
        return print(ab_study.tally(args.output, args.votes))
    shard, settings = check(args)
    tasks = clip_sets.open_set(args.data, args.root)
    if args.against:
        return make_study(args, tasks, settings)
    names = selected_metrics(args, tasks)
    if args.identity:
        tasks = [
            dataclasses.replace(task, instruction=IDENTITY, edited_caption=task.source_caption)
            for task in tasks
        ]
    clip, net, left = load_metric_models(args, names)
    weights = ({"clip": clip.folder.fingerprint()} if clip else {}) | (
        {"inception": {args.inception.name: net.sha256}} if net else {}
    )
    record = {
        "data": args.data,
        "clips": vars(settings),
        "weights": weights,
        "arithmetic": {"clip": np.dtype(clip.dtype).name} if clip else {},
    }
    record |= {"edited": str(args.edited)} if args.edited else {"identity": args.identity}
    make = None if args.edited else editor(args, record)
    claim(args.output, record, GROWS)
    if make:
        edit(make, tasks[shard[0] :: shard[1]], args.output / "edited", settings)
    judge = clip_metrics.ClipEvaluator(
        tuple(name for name in names if name not in left),
        args.edited or args.output / "edited",
        args.output,
        settings,
        clip,
        net,
    )
    with Progress("judging") as progress:
        own = judge.run(tasks, shard, progress)
    told, items = None, judge.kept(tasks, own)
    while (
        items != told
    ):  # another process may have finished while this one wrote: then it is written anew
        distances, notes = clip_metrics.distances(
            items, args.output, [name for name in judge.names if name in clip_metrics.SET_METRICS]
        )
        sources, single = (
            {task.id: str(task.source) for task in tasks},
            [name for name in judge.names if name not in clip_metrics.SET_METRICS],
        )
        found = report.metric_entries(
            items,
            names,
            clip_metrics.summary(items, single, sources),
            distances,
            notes | left,
            weights,
        )
        report.write(
            args.output,
            record | {"versions": versions()},
            tasks,
            items,
            found,
            pictures(tasks, items, judge, args.shown),
        )
        told, items = items, judge.kept(tasks, own)
    print(report.text(found))
    print_summary(tasks, items, args.output / "index.html")
    if left:
        reasons = "; ".join(dict.fromkeys(left.values()))
        raise UserError(
            f"{', '.join(left)} left out: {reasons}. The rest is in {args.output / 'index.html'}; run it again with the right file to add them"
        )


def print_summary(
    tasks: Sequence[clip_sets.EvaluationTask], items: Sequence[clip_metrics.ClipItem], page: Path
) -> None:
    """On the screen: what was judged and what not."""
    unread, cut = [item for item in items if item.error], [item for item in items if item.note]
    for item in unread:
        log.warning("%s: not judged: %s", item.id, item.error)
    for item in cut:
        log.warning("%s: %s", item.id, item.note)
    counts = [f"{len(unread)} could not be"] * bool(unread) + [
        f"{len(cut)} of clips of unlike length"
    ] * bool(cut)
    print(
        f"{', '.join([f'judged {len(items) - len(unread)} of {len(tasks)} edits', *counts])}; wrote {page}"
    )


def check(args) -> tuple[tuple[int, int], ClipSettings]:
    """The shard and the clips' settings; UserError for values out of range and options that do not go together."""
    if args.data in WORLDS:
        raise UserError("--edited needs --data: the clips that were edited and their instructions")
    if args.edited and (args.model or args.identity):
        raise UserError(
            "--edited judges finished edits; --model and --identity make them: choose one"
        )
    for option in (args.edited, args.against):
        if option and not option.is_dir():
            raise UserError(f"{option}: no such folder of edited clips")
    if args.against and not args.edited:
        raise UserError(
            "--against needs --edited: the page sets the edits of two folders side by side"
        )
    part = parse_shard(args.shard)
    for name, value, low, high in (
        ("--clip-size", args.clip_size, 8, 4096),
        ("--clip-frames", args.clip_frames, 1, 100_000),
        ("--shown", args.shown, 0, 1000),
    ):
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} {value} must be between {low} and {high}")
    return part, ClipSettings(args.clip_size, args.clip_fps, args.clip_frames)


def selected_metrics(args, tasks: Sequence[clip_sets.EvaluationTask]) -> tuple[str, ...]:
    """The metrics: those asked for, or all that can be computed; UserError for unknown ones and for those whose weights are not given."""
    if unknown := [name for name in args.metrics if name not in METRICS]:
        raise UserError(f"--metrics {' '.join(unknown)}: choose from {', '.join(METRICS)}")
    given = {"": True, "clip": args.clip_model, "inception": args.inception}
    for name in args.metrics:
        if not given[METRICS[name].needs]:
            raise UserError(f"--metrics {name} needs {WAYS_OUT[METRICS[name].needs]}")
    masks = any(task.mask for task in tasks)
    return args.metrics or tuple(
        name
        for name, metric in METRICS.items()
        if given[metric.needs] and (masks or not name.endswith("_outside"))
    )


def load_metric_models(args, names: Sequence[str]):
    """(the loaded CLIP, Inception, by metric why it must be left out); the nets None where no metric needs them or they cannot be had.

    Raises UserError where nothing would be left. CLIP computes in float32 unless --dtype says otherwise: scores must not depend on the machine.
    """
    loads = {
        "clip": lambda: load_clip(
            args.clip_model, "float32" if args.dtype == "auto" else args.dtype
        ),
        "inception": lambda: inception.Inception(args.inception),
    }
    found, left = dict.fromkeys(loads), {}
    for need, load in loads.items():
        mine = [name for name in names if METRICS[name].needs == need]
        try:
            found[need] = load() if mine else None
        except UserError as error:
            left |= dict.fromkeys(mine, str(error))
    if len(left) == len(names):
        raise UserError("; ".join(dict.fromkeys(left.values())))
    return *found.values(), left


# ---- edits ----


def editor(args, record: dict) -> Callable[[np.ndarray, str], np.ndarray]:
    """(clip, instruction) -> its edit by --model; what it is goes into the record."""
    pipe = pipeline.load(args.model, args.dtype)
    settings = pipeline.EditSettings.from_args(args).resolve(pipe.folder)
    pipe.check_editor()
    record |= {
        "model": args.model or "shapes-edit",
        "model_weights": pipe.folder.fingerprint(),
        "settings": vars(settings),
    }
    return lambda clip, instruction: pipe.edit(clip, instruction, **vars(settings))


def edit(
    make: Callable, tasks: Sequence[clip_sets.EvaluationTask], folder: Path, settings: ClipSettings
) -> None:
    """Writes folder/ID/*.png for each task that has none, or one of another instruction or source; a clip that cannot be edited is named and left out."""
    with Progress("editing", len(tasks)) as progress:
        for task in progress.wrap(tasks):
            target = folder / task.id
            try:
                of = json.dumps(
                    {
                        "instruction": task.instruction,
                        "source": clip_metrics.fingerprint_files(task.source),
                    }
                )
                if (target / EDIT_RECORD).is_file() and (target / EDIT_RECORD).read_text() == of:
                    continue
                clip = open_clip(task.source, fps=settings.fps)
                size = common_size([(clip.height, clip.width)], settings.size)
                edited = make(read_fitted(clip, size, settings.frames), task.instruction)
            except UserError as error:
                log.warning("%s: not edited: %s", task.id, error)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as frames:
                frames.mkdir()
                for i, pixels in enumerate(edited):
                    Image.fromarray(pixels).save(frames / f"{i:05d}.png")
                (frames / EDIT_RECORD).write_text(of)
                shutil.rmtree(target, ignore_errors=True)


def pictures(
    tasks: Sequence[clip_sets.EvaluationTask],
    items: Sequence[clip_metrics.ClipItem],
    judge: clip_metrics.ClipEvaluator,
    count: int,
) -> Iterator[tuple[clip_sets.EvaluationTask, np.ndarray, float]]:
    """Clips for the page, spread over the set: (task, source and edit side by side, frames/s)."""
    good = {item.id for item in items if not item.error}
    whole = [task for task in tasks if task.id in good]
    for i in np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int)):
        source, edited, fps = read_pair(
            whole[i].source, clip_sets.find_edited(judge.edited, whole[i].id), judge.clips
        )
        yield whole[i], np.concatenate([source, edited], axis=2), fps


def make_study(args, tasks: Sequence[clip_sets.EvaluationTask], settings: ClipSettings) -> None:
    """The page of the pairs that both folders have, and what could not be read."""
    pairs, bad = [], []
    for task in tasks:
        try:
            source, first, fps = read_pair(
                task.source, clip_sets.find_edited(args.edited, task.id), settings
            )
            _, second, _ = read_pair(
                task.source, clip_sets.find_edited(args.against, task.id), settings
            )
            pairs.append(
                ab_study.Question.of(task.id, task.instruction, source, (first, second), fps)
            )
        except UserError as error:
            bad.append(task.id)
            log.warning("%s: left out: %s", task.id, error)
    file = ab_study.write(args.output, pairs, (str(args.edited), str(args.against)), args.seed)
    print(
        f"{len(pairs)} pairs{f', {len(bad)} left out' if bad else ''}; open {file}, or: python -m ivid2vid_jax.evaluation.ab_study --folder {args.output}"
    )
