"""Measures edited clips on disk, one pair at a time, and stores each result at once.

Memory holds one pair, and a stopped run continues. OUTPUT/items-I.jsonl has a line per edit: its
values by metric, and the reasons for missing ones. OUTPUT/features has each clip's Inception
features, from which FID and KID are computed in parts at the end. Several processes may share the
work (`shard`), because the values of an edit depend on no other edit.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.data.clip_pairs import (
    ClipSettings,
    common_size,
    open_to_read,
    read_clips,
    read_fitted,
)
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask, find_edited
from ivid2vid_jax.evaluation.distribution_distances import (
    Moments,
    draw_rows,
    frechet_distance,
    kernel_distance,
)
from ivid2vid_jax.evaluation.metrics import METRICS, Pair, measure
from ivid2vid_jax.utils import jsonl
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.intervals import bootstrap_interval
from ivid2vid_jax.video.read import open_clip

SET_METRICS = ("fid", "kid")  # of all clips together
MAX_KID_FRAMES = 10_000  # of each side; 80 MB of features


@dataclasses.dataclass(frozen=True)
class ClipItem:
    """The result of one edit.

    Attributes:
        id: the edit's.
        fingerprint: of the files and captions it was computed from.
        shape: frames, height, width.
        values: by metric.
        reasons: by metric, why it has no value.
        features: feature files of the edited and the source clip, relative to the output folder.
        error: why the pair could not be read.
        note: a remark on the pair, such as clips of different length.
    """

    id: str
    fingerprint: str
    shape: tuple[int, ...] = ()
    values: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    features: tuple[str, ...] = ()
    error: str = ""
    note: str = ""

    @classmethod
    def from_json(cls, line: str) -> "ClipItem":
        """Parses a line of items.jsonl; earlier versions called the fingerprint "mark"."""
        fields = json.loads(line)
        if "mark" in fields:
            fields["fingerprint"] = fields.pop("mark")
        for name in ("shape", "features"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class ClipEvaluator:
    """Measures the edits of a set.

    Attributes:
        names: of METRICS.
        edited: folder of the edited clips.
        output: folder of the results.
        clips: how clips are read.
        clip: a CLIPEmbedder, if a metric needs it.
        inception: an Inception network, if a metric needs it.
    """

    names: tuple[str, ...]
    edited: Path
    output: Path
    clips: ClipSettings = ClipSettings()
    clip: Any = None
    inception: Any = None

    def run(
        self,
        tasks: Sequence[EvaluationTask],
        shard: tuple[int, int] = (0, 1),
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, ClipItem]:
        """Measures the tasks of a shard (index, count); returns its items by id.

        Pairs that could not be read are tried again.
        """
        items = {item.id: item for item in read(self.output)}
        shard_tasks = tasks[shard[0] :: shard[1]]
        with jsonl.open_append(self.output / f"items-{shard[0]}.jsonl") as out:
            for number, task in enumerate(shard_tasks, 1):
                item = self.item(task, items.get(task.id))
                if item != items.get(task.id):
                    items[task.id] = item
                    out.write(json.dumps(dataclasses.asdict(item)) + "\n")
                    out.flush()
                if progress:
                    progress(number, len(shard_tasks))
        return {task.id: items[task.id] for task in shard_tasks}

    def all_items(
        self, tasks: Sequence[EvaluationTask], shard_items: Mapping[str, ClipItem]
    ) -> list[ClipItem]:
        """The items of all finished tasks: this shard's, and those other processes have written."""
        items = {item.id: item for item in read(self.output)} | dict(shard_items)
        return [items[task.id] for task in tasks if task.id in items]

    def item(self, task: EvaluationTask, previous: ClipItem | None) -> ClipItem:
        """Measures what is missing of a task, or everything if one of its files has changed."""
        try:
            fingerprint_files(task.source)  # a missing source is the error to report, not its edit
            edited = find_edited(self.edited, task.id)
            captions = (task.source_caption, task.edited_caption)
            fingerprint = fingerprint_files(
                task.source, edited, task.mask, task.target, texts=captions
            )
            if previous and (previous.fingerprint != fingerprint or previous.error):
                previous = None
            missing = self.missing_metrics(previous)
            needs_features = self.needs_features(previous)
            if previous and not missing and not needs_features:
                return previous
            pair, note = self.read_pair(task, edited)
        except UserError as error:
            message = f"{task.where}: {error}" if task.where else str(error)
            return ClipItem(task.id, "", error=message)
        values, reasons = measure(pair, missing)
        earlier = previous.reasons if previous else {}  # of metrics that are not measured now
        reasons |= {name: earlier[name] for name in earlier if name not in missing}
        features = previous.features if previous else ()
        if needs_features:
            try:
                features = tuple(
                    self.save_features(clip, f"{path} {fingerprint_files(path)}")
                    for path, clip in ((edited, pair.edited), (task.source, pair.source))
                )
            except UserError as error:
                features, reasons = (), reasons | dict.fromkeys(SET_METRICS, str(error))
        return ClipItem(
            task.id,
            fingerprint,
            pair.source.shape[:3],
            (previous.values if previous else {}) | values,
            reasons,
            features,
            note=note,
        )

    def missing_metrics(self, previous: ClipItem | None) -> list[str]:
        """The metrics of a clip that the previous item has no value of."""
        measured = previous.values if previous else {}
        return [name for name in self.names if name not in SET_METRICS and name not in measured]

    def needs_features(self, previous: ClipItem | None) -> bool:
        """Whether Inception's features are needed and not stored yet."""
        files = previous.features if previous else ()
        stored = bool(files) and all((self.output / name).is_file() for name in files)
        return bool(set(SET_METRICS) & set(self.names)) and not stored

    def read_pair(self, task: EvaluationTask, edited: Path) -> tuple[Pair, str]:
        """The clips of a task, cut to the same length, and a note if their lengths differed."""
        source_clip, edited_clip, _ = read_clips(task.source, edited, self.clips)
        note = length_note(source_clip, edited_clip)
        frames = min(len(source_clip), len(edited_clip))
        source_clip, edited_clip = source_clip[:frames], edited_clip[:frames]
        captions = (task.source_caption, task.edited_caption)
        mask = self.read_mask(task, source_clip)
        target = self.read_target(task, source_clip)
        return Pair(source_clip, edited_clip, mask, target, captions, self.clip), note

    def read_target(self, task: EvaluationTask, source: np.ndarray) -> np.ndarray | None:
        """The true edit of a task in the source's size, cut to its length; None if unknown."""
        if task.target is None:
            return None
        clip = open_to_read(task.target, self.clips)
        common_size([source.shape[1:3], (clip.height, clip.width)], self.clips.size)
        return read_fitted(clip, source.shape[1:3], len(source))

    def read_mask(self, task: EvaluationTask, source: np.ndarray) -> np.ndarray | None:
        """The mask of a task, of a clip or a still: pixels brighter than half of white."""
        if task.mask is None:
            return None
        clip = open_clip(task.mask, fps=self.clips.fps)
        frames = read_fitted(clip, source.shape[1:3], len(source))
        if len(frames) not in (1, len(source)):
            raise UserError(
                f"{task.mask}: has {len(frames)} frames and the clip {len(source)}; a mask needs "
                "one frame or as many as the clip"
            )
        return np.broadcast_to(frames.mean(-1) > 127, source.shape[:3])

    def save_features(self, clip: np.ndarray, name: str) -> str:
        """Writes a clip's Inception features unless they exist; the file's path in the output."""
        key = hashlib.sha256(f"{name} {clip.shape} {self.inception.sha256}".encode()).hexdigest()
        file = self.output / "features" / f"{key[:24]}.npy"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as temporary, temporary.open("wb") as out:
                np.save(out, self.inception.features(clip))
        return str(file.relative_to(self.output))


def read(output: Path) -> list[ClipItem]:
    """The last item of each edit, of all shards; a line that was cut off is left out."""
    items = (
        ClipItem.from_json(line)
        for file in sorted(output.glob("items-*.jsonl"))
        for line in jsonl.read_complete_lines(file)
    )
    return list({item.id: item for item in items}.values())


def length_note(source: np.ndarray, edited: np.ndarray) -> str:
    """A note on clips of different length, "" if they are equal.

    Clips that differ by more than a tenth are refused when they are read.
    """
    if len(source) == len(edited):
        return ""
    return (
        f"the edited clip has {len(edited)} frames, the source {len(source)}: "
        f"the first {min(len(source), len(edited))} are compared"
    )


def fingerprint_files(*paths: Path | None, texts: Sequence[str] = ()) -> str:
    """A hash of the sizes and modification times of files or folders, and of texts."""
    entries: list = [*texts]
    for path in filter(None, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file")
        for file in [path, *sorted(path.iterdir())] if path.is_dir() else [path]:
            state = file.stat()
            entries.append((str(file), state.st_size if file.is_file() else 0, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


# ---- metrics of all clips together ----


def distances(
    items: Sequence[ClipItem], output: Path, names: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """FID and KID of the items' features, which are read part by part.

    A source clip with several edits counts once.

    Returns:
        The values by metric with the numbers of frames, and notes by metric.
    """
    pairs = [item.features for item in items if item.features]
    if not pairs:
        return {}, dict.fromkeys(names, "no clip has features")
    edited, source = (FeatureSet.of(output, files) for files in zip(*pairs, strict=True))
    frames = {"edited_frames": sum(edited.counts), "source_frames": sum(source.counts)}
    values: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    for name in names:
        try:
            if name == "fid":
                values[name], notes[name] = fid(edited, source)
            else:
                values[name] = kid(edited, source)
            values[name] |= frames
        except UserError as error:
            notes[name] = str(error)
    return values, notes


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Feature files of one side, and their numbers of rows."""

    files: tuple[Path, ...]
    counts: list[int]

    @classmethod
    def of(cls, output: Path, names: Sequence[str]) -> "FeatureSet":
        """The distinct ones of these files of the output folder."""
        files = tuple(output / name for name in dict.fromkeys(names))
        return cls(files, [len(np.load(file, mmap_mode="r")) for file in files])

    def load(self, index: int) -> np.ndarray:
        """The rows of a file."""
        return np.load(self.files[index])

    def moments(self) -> Moments:
        """Of all rows."""
        moments = Moments.of(self.load(0).shape[1])
        for i in range(len(self.files)):
            moments.add(self.load(i))
        return moments


def fid(edited: FeatureSet, source: FeatureSet) -> tuple[dict[str, Any], str]:
    """FID, and a note if there are too few frames for it ("" otherwise)."""
    moments = edited.moments(), source.moments()
    width, frames = len(moments[0].mean), min(side.weight for side in moments)
    note = ""
    if frames <= width:
        note = (
            f"{frames:g} frames are too few for the rank of a {width} x {width} covariance (more "
            f"than {width} are needed): biased upwards, compare equal N only; see KID"
        )
    return {"edited": frechet_distance(*moments)}, note


def kid(edited: FeatureSet, source: FeatureSet) -> dict[str, Any]:
    """KID and the standard error of its random subsets."""
    rows, reference_rows = (
        draw_rows(side.counts, MAX_KID_FRAMES, side.load) for side in (edited, source)
    )
    mean, error = kernel_distance(rows, reference_rows)
    return {"edited": mean, "standard_error_of_subsets": error}


def summary(
    items: Sequence[ClipItem], names: Sequence[str], sources: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """By metric: the mean over clips (PSNR: dB of the mean error), its 95% interval, and N.

    Source clips are resampled with all their edits, because edits of one source are correlated and
    would give too narrow an interval.

    Args:
        items: of the edits.
        names: metrics.
        sources: the source clip of each id.
    """
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        measured = [item for item in items if name in item.values]
        if not measured:
            continue
        groups = [sources[item.id] for item in measured]
        entry: dict[str, Any] = {
            "clips": len(measured),
            "sources": len(set(groups)),
            "frames": sum(item.shape[0] for item in measured),
        }
        statistic = METRICS[name].summary
        for key in measured[0].values[name]:
            column = np.array([item.values[name][key] for item in measured])
            finite = np.isfinite(statistic(column[:, None])).all()  # PSNR of a copy is infinite
            interval = None
            if len(set(groups)) > 1 and finite:
                interval = bootstrap_interval(column, statistic, groups)
            entry[key] = {"mean": float(statistic(column)), "interval": interval}
        result[name] = entry
    return result
