"""What a training run teaches: held-out clips of the kinds of edit that it draws, edited and judged before its first step and after its last."""

import logging
from collections.abc import Iterator
from pathlib import Path

from ivid2vid_jax.data.shapes import UNSEEN_STYLE, WORLDS, Spec
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import wilson_interval
from ivid2vid_jax.utils.progress import Progress

log = logging.getLogger(__name__)


def check_config(config: TrainConfig) -> None:
    """UserError where `log.benchmark` cannot be done."""
    if config.log.benchmark and (config.task != "edit" or not set(config.data) & set(WORLDS)):
        raise UserError(
            f"--log.benchmark {config.log.benchmark}: only edits of the shapes world can be judged: --task edit, --data shapes, or --log.benchmark 0"
        )


def run_benchmark(config: TrainConfig, run: Path, when: str, pipe: Pipeline) -> None:
    """Judges `log.benchmark` clips and keeps what was found in RUN/judged; when: "before" or "after". What is there already is not done again."""
    settings, kept = (
        EditSettings(steps=config.log.sample_steps).resolve(pipe.folder),
        file(run, config.steps if when == "after" else 0),
    )
    with Progress(f"judging {when} training") as progress:
        items = shapes_benchmark.run_benchmark(
            {"model": shapes_benchmark.editor(pipe, settings)},
            list(clips(config)),
            kept,
            None,
            progress,
        )
    log.info(
        "%s training %d of %d edits pass (%s)",
        when,
        sum(item.passed for item in items),
        len(items),
        kept,
    )


def file(run: Path, step: int) -> Path:
    """Of the weights after so many steps: a run that goes on is judged again."""
    return run / "judged" / (f"after-{step}.jsonl" if step else "before.jsonl")


def clips(config: TrainConfig) -> Iterator[tuple[str, int, Spec]]:
    """About `log.benchmark` held-out clips, at least one a kind; of a kind that is drawn twice as often twice as many."""
    world = next(name for name in config.data if name in WORLDS)
    kinds = config.loader.kinds or WORLDS[world]
    for kind in dict.fromkeys(kinds):
        count = max(1, round(config.log.benchmark * kinds.count(kind) / len(kinds)))
        yield from shapes_benchmark.specs(
            (kind,), count, config.loader.size, config.loader.frames, world
        )


def table(run: Path) -> str:
    """Markdown: how many edits passed before and after, the last time the run ended, kinds never trained on by default first; empty where not both are judged."""
    last = max(
        (int(found.stem.rpartition("-")[2]) for found in (run / "judged").glob("after-*.jsonl")),
        default=0,
    )
    before, after = (shapes_benchmark.read(file(run, step)) for step in (0, last))
    if not (last and before and after):
        return ""
    kinds = sorted({item.kind for item in after}, key=lambda kind: (kind != UNSEEN_STYLE, kind))
    groups = {kind: (kind,) for kind in kinds} | {
        "all kinds of the default training": tuple(kind for kind in kinds if kind != UNSEEN_STYLE)
    }
    lines = [
        f"| kind of edit | passed before [95%] | passed after {last} steps [95%] |",
        "|---|---|---|",
    ]
    for name, members in groups.items():
        cells = [
            share([item.passed for item in items if item.kind in members])
            for items in (before, after)
        ]
        if members:
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def share(passed: list[bool]) -> str:
    if not passed:
        return ""
    low, high = wilson_interval(sum(passed), len(passed))
    return f"{sum(passed)} of {len(passed)}, {100 * sum(passed) / len(passed):.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
