"""Judging edited clips on disk: one after the other, so that memory holds one pair, each kept as it is done, so that a stopped run goes on.

OUTPUT/items.jsonl holds a line an edit: its values by metric, and the reason for each that it has none of. OUTPUT/features holds Inception's features of
each clip, from which FID and KID are computed in parts at the end. Several processes may share the work (`shard`): what an edit is worth depends on no other.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.data.readers import ClipSettings, read_clips, read_fitted
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
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import bootstrap_interval
from ivid2vid_jax.video.read import open_clip

SET_METRICS = ("fid", "kid")  # of all clips together
MAX_KID_FRAMES = 10_000  # frames of each side that KID looks at, at most: 80 MB


@dataclasses.dataclass(frozen=True)
class ClipItem:
    """One edit, judged. mark: of the files and captions it was judged by. shape: frames, height, width. features: files of the edited and the source clip's.

    error: why the pair could not be read; reasons: by metric, why it has no value; note: what to know about it.
    """

    id: str
    mark: str
    shape: tuple[int, ...] = ()
    values: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    features: tuple[str, ...] = ()
    error: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ClipEvaluator:
    """What judges: names of METRICS, how clips are brought in, and the weights that some need."""

    names: tuple[str, ...]
    edited: Path
    output: Path
    clips: ClipSettings = ClipSettings()
    clip: Any = None  # ivid2vid_jax.evaluation.clip_scores.Clip
    inception: Any = None

    def run(
        self,
        tasks: Sequence[EvaluationTask],
        shard: tuple[int, int] = (0, 1),
        progress: Callable | None = None,
    ) -> dict[str, ClipItem]:
        """Judges this process's share of the tasks and gives its items by id. What could not be read is tried again."""
        done, mine = {item.id: item for item in read(self.output)}, tasks[shard[0] :: shard[1]]
        with jsonl.open_append(self.output / f"items-{shard[0]}.jsonl") as out:
            for number, task in enumerate(mine, 1):
                item = self.item(task, done.get(task.id))
                if item != done.get(task.id):
                    done[task.id] = item
                    out.write(json.dumps(dataclasses.asdict(item)) + "\n")
                    out.flush()
                if progress:
                    progress(number, len(mine))
        return {task.id: done[task.id] for task in mine}

    def kept(self, tasks: Sequence[EvaluationTask], own: Mapping[str, ClipItem]) -> list[ClipItem]:
        """The items of all tasks that are done: this process's own, and what others have written by now."""
        found = {item.id: item for item in read(self.output)} | own
        return [found[task.id] for task in tasks if task.id in found]

    def item(self, task: EvaluationTask, before: ClipItem | None) -> ClipItem:
        """What is there already is not measured again, unless a file has changed."""
        try:
            fingerprint_files(
                task.source
            )  # a clip that is not there has no edit either: that it is missing is what to say
            edited = find_edited(self.edited, task.id)
            mark = fingerprint_files(
                task.source, edited, task.mask, words=(task.source_caption, task.edited_caption)
            )
            if before and (before.mark != mark or before.error):
                before = None
            missing = [
                name
                for name in self.names
                if name not in SET_METRICS and not (before and name in before.values)
            ]
            kept = (
                before
                and before.features
                and all((self.output / name).is_file() for name in before.features)
            )
            wants_features = set(SET_METRICS) & set(self.names) and not kept
            if before and not missing and not wants_features:
                return before
            source, found, _ = read_clips(task.source, edited, self.clips)
            note = lengths(source, found)
            source, found = source[: len(found)], found[: len(source)]
            mask = self.mask(task, source)
        except UserError as error:
            return ClipItem(
                task.id, "", error=f"{task.where}: {error}" if task.where else str(error)
            )
        pair = Pair(source, found, mask, (task.source_caption, task.edited_caption), self.clip)
        values, reasons = measure(pair, missing)
        features = before.features if before else ()
        if wants_features:
            try:
                features = tuple(
                    self.features(clip, f"{path} {fingerprint_files(path)}")
                    for path, clip in ((edited, found), (task.source, source))
                )
            except UserError as error:
                features, reasons = (), reasons | dict.fromkeys(SET_METRICS, str(error))
        return ClipItem(
            task.id,
            mark,
            source.shape[:3],
            (before.values if before else {}) | values,
            reasons,
            features,
            note=note,
        )

    def mask(self, task: EvaluationTask, source: np.ndarray) -> np.ndarray | None:
        """A clip's or a still's pixels above half of white."""
        if task.mask is None:
            return None
        frames = read_fitted(
            open_clip(task.mask, fps=self.clips.fps), source.shape[1:3], len(source)
        )
        if len(frames) not in (1, len(source)):
            raise UserError(
                f"{task.mask}: has {len(frames)} frames, the clip {len(source)}; a mask has one or as many"
            )
        return np.broadcast_to(frames.mean(-1) > 127, source.shape[:3])

    def features(self, clip: np.ndarray, name: str) -> str:
        """Writes Inception's features of a clip, whole or not at all; the file's name within the output."""
        file = (
            self.output
            / "features"
            / f"{hashlib.sha256(f'{name} {clip.shape} {self.inception.sha256}'.encode()).hexdigest()[:24]}.npy"
        )
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as temporary, open(temporary, "wb") as out:
                np.save(out, self.inception.features(clip))
        return str(file.relative_to(self.output))


def read(output: Path) -> list[ClipItem]:
    """Of all shards, the last of each edit; a line that was cut off is left out."""
    found = [
        ClipItem(**json.loads(line))
        for file in sorted(output.glob("items-*.jsonl"))
        for line in jsonl.read_complete_lines(file)
    ]
    return list(
        {
            item.id: dataclasses.replace(
                item, shape=tuple(item.shape), features=tuple(item.features)
            )
            for item in found
        }.values()
    )


def lengths(source: np.ndarray, edited: np.ndarray) -> str:
    """In words where the two clips have not as many frames, of which a tenth at most is then left out."""
    if len(source) == len(edited):
        return ""
    return f"the edited clip has {len(edited)} frames, the source {len(source)}: the first {min(len(source), len(edited))} are compared"


def fingerprint_files(*paths: Path | None, words: Sequence[str] = ()) -> str:
    """Changes when a file does, by sizes and times of change, or a word."""
    found: list = [*words]
    for path in filter(None, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file")
        for file in [path, *sorted(path.iterdir())] if path.is_dir() else [path]:
            state = file.stat()
            found.append((str(file), state.st_size if file.is_file() else 0, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def distances(
    items: Sequence[ClipItem], output: Path, names: Sequence[str]
) -> tuple[dict[str, dict], dict[str, str]]:
    """(FID and KID of the items' features with their numbers of frames, what to know about them); parts are read one by one."""
    pairs = [item.features for item in items if item.features]
    sides = [
        list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1)
    ]  # a source of several edits counts once
    counts = [[len(np.load(output / name, mmap_mode="r")) for name in side] for side in sides]
    found, notes = {}, {}
    if not pairs:
        return {}, dict.fromkeys(names, "no clip has features")
    sizes = {"edited_frames": sum(counts[0]), "source_frames": sum(counts[1])}
    for name in names:
        try:
            found[name] = (
                {"edited": fid(output, sides, notes)}
                if name == "fid"
                else kid(output, sides, counts)
            )
            found[name] |= sizes
        except UserError as error:
            notes[name] = str(error)
    return found, notes


def fid(output: Path, sides: list[list[str]], notes: dict[str, str]) -> float:
    moments = []
    for side in sides:
        for i, name in enumerate(side):
            rows = np.load(output / name)
            moments += [] if i else [Moments.of(rows.shape[1])]
            moments[-1].add(rows)
    width, least = len(moments[0].mean), min(each.weight for each in moments)
    if least <= width:
        rank = f"{least:g} frames are too few for the rank of a {width} x {width} covariance (more than {width} are needed)"
        notes["fid"] = f"{rank}: biased upwards, compare equal N only; see KID"
    return frechet_distance(*moments)


def kid(output: Path, sides: list[list[str]], counts: list[list[int]]) -> dict[str, float]:
    rows = [
        draw_rows(count, MAX_KID_FRAMES, lambda i, side=side: np.load(output / side[i]))
        for side, count in zip(sides, counts, strict=True)
    ]
    mean, error = kernel_distance(*rows)
    return {"edited": mean, "standard_error_of_subsets": error}


def summary(
    items: Sequence[ClipItem], names: Sequence[str], sources: Mapping[str, str]
) -> dict[str, dict]:
    """By metric: of each of its values the mean over clips (PSNR: the dB of the mean error) with its 95% interval, and N. sources: by id, the clip that was
    edited. Whole sources are resampled, each with all its edits: edits of one clip are alike, and would tell a narrower interval if they were many clips.
    """
    found = {}
    for name in names:
        having = [item for item in items if name in item.values]
        if not having:
            continue
        values, groups = (
            [item.values[name] for item in having],
            [sources[item.id] for item in having],
        )
        found[name] = {
            "clips": len(values),
            "sources": len(set(groups)),
            "frames": sum(item.shape[0] for item in having),
        }
        for key in values[0]:
            column, statistic = np.array([each[key] for each in values]), METRICS[name].summary
            spread = (
                len(set(groups)) > 1 and np.isfinite(statistic(column[:, None])).all()
            )  # PSNR of a copy is infinite
            found[name][key] = {
                "mean": float(statistic(column)),
                "interval": bootstrap_interval(column, statistic, groups) if spread else None,
            }
    return found
