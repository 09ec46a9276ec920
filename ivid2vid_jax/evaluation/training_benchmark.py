"""The benchmark of a training run: held-out clips, edited before its first step and after its last.

The clips are of the kinds of edit that the run trains on. Results are files of RUN/benchmark.
"""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from ivid2vid_jax.data.shapes import UNSEEN_STYLE, WORLDS, Spec
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.evaluation.shapes_benchmark import ShapesItem
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.hooks import Benchmark
from ivid2vid_jax.utils.intervals import wilson_interval
from ivid2vid_jax.utils.progress import Progress

log = logging.getLogger(__name__)

FOLDER, OLD_FOLDER = "benchmark", "judged"  # OLD_FOLDER: of earlier runs


def applicable(config: TrainConfig) -> TrainConfig:
    """The config, without `log.benchmark` for a run that cannot be evaluated by it; logs that."""
    if not config.log.benchmark or (config.task == "edit" and set(config.data) & set(WORLDS)):
        return config
    log.info(
        "no benchmark (--log.benchmark %d): it checks edits of the shapes world only",
        config.log.benchmark,
    )
    return dataclasses.replace(config, log=dataclasses.replace(config.log, benchmark=0))


def run_benchmark(config: TrainConfig, run: Path, when: str, pipe: Pipeline) -> None:
    """Evaluates about `log.benchmark` clips and writes the results; existing ones are kept.

    Args:
        config: of the training run.
        run: the run's folder.
        when: "before" or "after" the training.
        pipe: the editor with the weights of that moment.
    """
    settings = EditSettings(steps=config.log.sample_steps).resolve(pipe.folder)
    specs = list(clips(config))
    log.info("benchmark of %d clips %s training; --log.benchmark 0 skips it", len(specs), when)
    results = file(run, config.steps if when == "after" else 0)
    with Progress(f"benchmark {when} training") as progress:
        items = shapes_benchmark.run_benchmark(
            {"model": shapes_benchmark.editor(pipe, settings)},
            specs,
            results,
            None,
            progress,
        )
    passed = sum(item.passed for item in items)
    log.info("%s training %d of %d edits pass (%s)", when, passed, len(items), results)


def is_missing(config: TrainConfig, run: Path) -> bool:
    """Whether some clip of the benchmark after the last step has no result yet."""
    return len(shapes_benchmark.read(file(run, config.steps))) < len(list(clips(config)))


BENCHMARK = Benchmark(run_benchmark, is_missing)


def folder(run: Path) -> Path:
    """The folder of a run's results: RUN/benchmark, or an earlier run's RUN/judged."""
    old = run / OLD_FOLDER
    return old if old.is_dir() and not (run / FOLDER).exists() else run / FOLDER


def file(run: Path, step: int) -> Path:
    """The file of the results at a step; 0 is before training.

    A run that continues to a later step is evaluated again at that step.
    """
    return folder(run) / (f"after-{step}.jsonl" if step else "before.jsonl")


def clips(config: TrainConfig) -> Iterator[tuple[str, int, Spec]]:
    """Yields (kind, index, spec) of about `log.benchmark` held-out clips.

    Kinds are represented as often as training draws them, with at least one clip each.
    """
    world = next(name for name in config.data if name in WORLDS)
    kinds = config.loader.kinds or WORLDS[world]
    for kind in dict.fromkeys(kinds):
        count = max(1, round(config.log.benchmark * kinds.count(kind) / len(kinds)))
        yield from shapes_benchmark.specs(
            (kind,), count, config.loader.size, config.loader.frames, world
        )


def table(run: Path) -> str:
    """Markdown: passed edits before training and after its last end, by kind.

    Kinds that the default training never draws come first. Empty if there are no results of before
    or after.
    """
    steps = (int(path.stem.rpartition("-")[2]) for path in folder(run).glob("after-*.jsonl"))
    last = max(steps, default=0)
    before, after = (shapes_benchmark.read(file(run, step)) for step in (0, last))
    if not (last and before and after):
        return ""
    kinds = sorted({item.kind for item in after}, key=lambda kind: (kind != UNSEEN_STYLE, kind))
    groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in kinds}
    if trained := tuple(kind for kind in kinds if kind != UNSEEN_STYLE):
        groups["all kinds of the default training"] = trained
    lines = [
        f"| kind of edit | passed before [95%] | passed after {last} steps [95%] |",
        "|---|---|---|",
    ]
    for name, members in groups.items():
        cells = [name, passed_share(before, members), passed_share(after, members)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def passed_share(items: list[ShapesItem], kinds: tuple[str, ...]) -> str:
    """The share of edits of these kinds that pass, with its interval; "" if there are none."""
    passed = [item.passed for item in items if item.kind in kinds]
    if not passed:
        return ""
    low, high = wilson_interval(sum(passed), len(passed))
    share = sum(passed) / len(passed)
    return f"{sum(passed)} of {len(passed)}, {100 * share:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
