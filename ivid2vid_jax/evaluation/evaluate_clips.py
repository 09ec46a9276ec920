"""`evaluate` on a set of clips: edits them if there is a model, measures them, writes the report.

With --against it writes an A/B page instead.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.data.clip_pairs import ClipSettings, read_pair
from ivid2vid_jax.data.shapes import WORLDS
from ivid2vid_jax.errors import UserError, parse_shard
from ivid2vid_jax.evaluation import (
    ab_study,
    clip_metrics,
    clip_sets,
    inception,
    make_edits,
    prepared_set,
    report,
)
from ivid2vid_jax.evaluation.clip_metrics import SET_METRICS, ClipEvaluator, ClipItem
from ivid2vid_jax.evaluation.clip_scores import FETCH, FULL, CLIPEmbedder, load_clip
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask
from ivid2vid_jax.evaluation.metrics import METRICS
from ivid2vid_jax.evaluation.options import EvaluateArgs
from ivid2vid_jax.evaluation.output_folder import bind_to_settings
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.utils.versions import versions

log = logging.getLogger(__name__)

IDENTITY = "change nothing"  # the instruction of --identity
# Entries of run.json that grow: a later run may add metrics, and the weights they need.
MERGEABLE = ("weights", "arithmetic")
MISSING_WEIGHTS = {
    "clip": f"--clip-model {FULL} (or a folder), fetched with: {FETCH}",
    "inception": f"--inception {inception.FILE}, fetched with: {inception.FETCH}",
}


def run(args: EvaluateArgs) -> None:
    """Runs an evaluation, an A/B page or a count of its votes.

    Raises:
        UserError: for bad options; also at the end, if a metric's weights could not be loaded.
    """
    if args.votes:
        print(ab_study.tally(args.output, args.votes))
        return
    shard, settings = check_args(args)
    prepared = None
    if prepared_set.is_prepared(args.data):
        prepared = prepared_set.open_prepared(args.data, args.split, args.output)
    tasks = prepared.tasks() if prepared else clip_sets.open_set(args.data, args.root, args.columns)
    if args.against:
        if prepared:
            prepared.write_clips()
        make_study(args, tasks, settings)
        return
    names = selected_metrics(args, tasks)
    if args.identity:
        tasks = [
            dataclasses.replace(task, instruction=IDENTITY, edited_caption=task.source_caption)
            for task in tasks
        ]
    models = load_metric_models(args, names)
    record: dict[str, Any] = {
        "data": args.data,
        "clips": vars(settings),
        "weights": models.fingerprints(),
        "arithmetic": {"clip": np.dtype(models.clip.dtype).name} if models.clip else {},
    }
    record |= {"split": args.split} if prepared else {}
    record |= {"edited": str(args.edited)} if args.edited else {"identity": args.identity}
    edit_clip = None if args.edited else make_edits.load_editor(args, record)
    record = bind_to_settings(args.output, record, MERGEABLE)
    if prepared:
        prepared.write_clips()
    if edit_clip:
        make_edits.write_edits(
            edit_clip, tasks[shard[0] :: shard[1]], args.output / "edited", settings
        )
    evaluator = ClipEvaluator(
        tuple(name for name in names if name not in models.errors),
        args.edited or args.output / "edited",
        args.output,
        settings,
        models.clip,
        models.inception,
    )
    with Progress("evaluating") as progress:
        shard_items = evaluator.run(tasks, shard, progress)
    writer = ReportWriter(evaluator, tasks, names, models, record, args.shown)
    metrics, items = writer.write_until_complete(shard_items)
    print(report.text(metrics))
    page = args.output / "index.html"
    print_summary(tasks, items, page)
    if models.errors:
        reasons = "; ".join(dict.fromkeys(models.errors.values()))
        raise UserError(
            f"{', '.join(models.errors)} left out: {reasons}. The other metrics are in {page}; run "
            "it again with the right files to add these"
        )


def check_args(args: EvaluateArgs) -> tuple[tuple[int, int], ClipSettings]:
    """Returns the shard and how clips are read.

    Raises UserError for values out of range and options that exclude each other.
    """
    if args.data in WORLDS:
        raise UserError("--edited needs --data: the clips that were edited and their instructions")
    if args.edited and (args.model or args.identity):
        raise UserError(
            "--edited evaluates finished edits; --model and --identity make them: choose one"
        )
    for folder in (args.edited, args.against):
        if folder and not folder.is_dir():
            raise UserError(f"{folder}: no such folder of edited clips")
    if args.against and not args.edited:
        raise UserError("--against needs --edited: the A/B page compares the edits of two folders")
    shard = parse_shard(args.shard)
    for option, value, low, high in (
        ("--clip-size", args.clip_size, 8, 4096),
        ("--clip-frames", args.clip_frames, 1, 100_000),
        ("--shown", args.shown, 0, 1000),
    ):
        if value is not None and not low <= value <= high:
            raise UserError(f"{option} {value} must be between {low} and {high}")
    return shard, ClipSettings(args.clip_size, args.clip_fps, args.clip_frames)


# ---- metrics and the models they need ----


def selected_metrics(args: EvaluateArgs, tasks: Sequence[EvaluationTask]) -> tuple[str, ...]:
    """The metrics of --metrics, or all that can be computed.

    Raises UserError for unknown ones and for those whose weights are not given.
    """
    if unknown := [name for name in args.metrics if name not in METRICS]:
        raise UserError(f"--metrics {' '.join(unknown)}: choose from {', '.join(METRICS)}")
    available = {"": True, "clip": args.clip_model, "inception": args.inception}
    for name in args.metrics:
        if not available[METRICS[name].needs]:
            raise UserError(f"--metrics {name} needs {MISSING_WEIGHTS[METRICS[name].needs]}")
    given = {
        "outside": any(task.mask for task in tasks),
        "target": any(task.target for task in tasks),
    }
    return args.metrics or tuple(
        name
        for name, metric in METRICS.items()
        if available[metric.needs] and given.get(name.rpartition("_")[2], True)
    )


@dataclasses.dataclass(frozen=True)
class MetricModels:
    """The networks that metrics need.

    Attributes:
        clip: None if no metric needs it or it cannot be loaded.
        inception: likewise.
        inception_file: name of its weights file.
        errors: by metric, why its network cannot be loaded.
    """

    clip: CLIPEmbedder | None
    inception: Any
    inception_file: str
    errors: dict[str, str]

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Hashes of the weights: network -> file -> hash."""
        clip = {"clip": self.clip.folder.fingerprint()} if self.clip else {}
        if not self.inception:
            return clip
        return clip | {"inception": {self.inception_file: self.inception.sha256}}


def load_metric_models(args: EvaluateArgs, names: Sequence[str]) -> MetricModels:
    """Loads the networks that the metrics need.

    CLIP computes in float32 unless --dtype says otherwise, because scores should not depend on the
    machine. Raises UserError if no metric is left.
    """

    def load(network: str) -> Any:
        if network == "clip":
            assert args.clip_model
            return load_clip(args.clip_model, "float32" if args.dtype == "auto" else args.dtype)
        assert args.inception
        return inception.Inception(args.inception)

    models: dict[str, Any] = dict.fromkeys(("clip", "inception"))
    errors: dict[str, str] = {}
    for network in models:
        dependent = [name for name in names if METRICS[name].needs == network]
        try:
            models[network] = load(network) if dependent else None
        except UserError as error:
            errors |= dict.fromkeys(dependent, str(error))
    if len(errors) == len(names):
        raise UserError("; ".join(dict.fromkeys(errors.values())))
    inception_file = args.inception.name if args.inception else ""
    return MetricModels(models["clip"], models["inception"], inception_file, errors)


# ---- the report ----


@dataclasses.dataclass(frozen=True)
class ReportWriter:
    """Writes the report of an evaluation.

    Attributes:
        evaluator: of the edits.
        tasks: of all shards.
        names: metrics, with those whose network could not be loaded.
        models: their networks.
        record: what was evaluated and with which settings.
        shown: number of clips on the page.
    """

    evaluator: ClipEvaluator
    tasks: Sequence[EvaluationTask]
    names: Sequence[str]
    models: MetricModels
    record: dict[str, Any]
    shown: int

    def write_until_complete(
        self, shard_items: dict[str, ClipItem]
    ) -> tuple[dict[str, dict], list[ClipItem]]:
        """Writes the report, again if another process finished items meanwhile.

        Returns:
            What the last report says of each metric, and its items.
        """
        while True:
            items = self.evaluator.all_items(self.tasks, shard_items)
            metrics = self.write(items)
            if self.evaluator.all_items(self.tasks, shard_items) == items:
                return metrics, items

    def write(self, items: list[ClipItem]) -> dict[str, dict]:
        """Writes the report of these items; returns what it says of each metric."""
        output = self.evaluator.output
        earlier = earlier_metrics(output)
        shown = [name for name in METRICS if name in {*self.names, *earlier}]
        measured = [name for name in shown if name not in self.models.errors]
        distances, notes = clip_metrics.distances(
            items, output, [name for name in measured if name in SET_METRICS]
        )
        sources = {task.id: str(task.source) for task in self.tasks}
        summaries = clip_metrics.summary(
            items, [name for name in measured if name not in SET_METRICS], sources
        )
        notes |= self.models.errors | outdated_notes(items, earlier - set(self.names))
        metrics = report.metric_entries(
            items, shown, summaries, distances, notes, self.record["weights"]
        )
        record = self.record | {"versions": versions()}
        report.write(output, record, self.tasks, items, metrics, self.pictures(items))
        return metrics

    def pictures(
        self, items: Sequence[ClipItem]
    ) -> Iterator[tuple[EvaluationTask, np.ndarray, float]]:
        """Yields clips for the page, evenly spaced in the set.

        Each is (task, source, edit and the true edit, if known, side by side, frames per second).
        """
        readable = {item.id for item in items if not item.error}
        tasks = [task for task in self.tasks if task.id in readable]
        count = min(self.shown, len(tasks))
        for i in np.unique(np.linspace(0, len(tasks) - 1, count).round().astype(int)):
            edited_path = clip_sets.find_edited(self.evaluator.edited, tasks[i].id)
            source, edited, fps = read_pair(tasks[i].source, edited_path, self.evaluator.clips)
            target = self.evaluator.read_target(tasks[i], source)
            clips = [source, edited] if target is None else [source, edited, target]
            length = min(map(len, clips))
            yield tasks[i], np.concatenate([clip[:length] for clip in clips], axis=2), fps


def earlier_metrics(output: Path) -> set[str]:
    """The metrics with values in the report that a folder has; a new report keeps them."""
    file = output / "report.json"
    entries = json.loads(file.read_text())["metrics"] if file.is_file() else {}
    return {name for name, entry in entries.items() if entry["numbers"]["clips"]}


def outdated_notes(items: Sequence[ClipItem], names: Iterable[str]) -> dict[str, str]:
    """Notes on earlier metrics that lack values of clips which have changed or are new since."""
    notes = {}
    for name in set(names) - set(SET_METRICS):
        lacking = [
            item
            for item in items
            if not item.error and name not in item.values and name not in item.reasons
        ]
        if lacking:
            notes[name] = (
                f"not measured for {len(lacking)} clips that are new or have changed; run again "
                f"with --metrics {name}"
            )
    return notes


def print_summary(tasks: Sequence[EvaluationTask], items: Sequence[ClipItem], page: Path) -> None:
    """Prints how many edits were evaluated; logs errors and notes."""
    unread, noted = [item for item in items if item.error], [item for item in items if item.note]
    for item in unread:
        log.warning("%s: not evaluated: %s", item.id, item.error)
    for item in noted:
        log.warning("%s: %s", item.id, item.note)
    parts = [f"evaluated {len(items) - len(unread)} of {len(tasks)} edits"]
    if unread:
        parts.append(f"{len(unread)} not readable")
    if noted:
        parts.append(f"{len(noted)} with clips of different length")
    print(f"{', '.join(parts)}; wrote {page}")


# ---- the A/B page ----


def make_study(args: EvaluateArgs, tasks: Sequence[EvaluationTask], settings: ClipSettings) -> None:
    """Writes the page of the pairs that both folders have; logs those that cannot be read."""
    assert args.edited and args.against
    pairs, skipped = [], 0
    for task in tasks:
        try:
            source, first, fps = read_pair(
                task.source, clip_sets.find_edited(args.edited, task.id), settings
            )
            _, second, _ = read_pair(
                task.source, clip_sets.find_edited(args.against, task.id), settings
            )
            edits = (first, second)
            pairs.append(ab_study.Question.of(task.id, task.instruction, source, edits, fps))
        except UserError as error:
            skipped += 1
            log.warning("%s: left out: %s", task.id, error)
    file = ab_study.write(args.output, pairs, (str(args.edited), str(args.against)), args.seed)
    omitted = f", {skipped} left out" if skipped else ""
    print(
        f"{len(pairs)} pairs{omitted}; open {file}, or: "
        f"python -m ivid2vid_jax.evaluation.ab_study --folder {args.output}"
    )
