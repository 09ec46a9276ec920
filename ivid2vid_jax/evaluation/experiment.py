"""Experiments: several recipes, several seeds, one protocol, one table. Every run resumes, so the whole can be stopped anywhere.

A file under configs/experiments/ exposes `experiment = Experiment(...)`.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ivid2vid_jax.data.shapes import KINDS
from ivid2vid_jax.evaluation import shapes
from ivid2vid_jax.evaluation.intervals import wilson
from ivid2vid_jax.pipeline import EditSettings, load
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics import read_metrics

# Student's t, two-sided 95%, by degrees of freedom (seeds less one)
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """arms: name -> recipe; their outputs and seeds are set here. count: held-out clips of each kind that judge every run."""

    question: str
    arms: dict[str, TrainConfig]
    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = ()
    count: int = 10
    settings: EditSettings = EditSettings()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run: its arm, seed, summary on the benchmark, and last validation."""

    arm: str
    seed: int
    summary: dict
    validation: dict[str, float]


def run(experiment: Experiment, output: Path, train: Callable[[TrainConfig], Path], progress: Callable | None = None) -> list[Outcome]:
    """Trains and judges every arm with every seed, into output/<arm>/<seed>."""
    outcomes = []
    for seed in experiment.seeds:  # seed by seed: a stopped experiment has compared all arms as often as any
        for arm, recipe in experiment.arms.items():
            home = output / arm / str(seed)
            train(dataclasses.replace(recipe, output=str(home), seed=seed))
            pipe = load(home)
            settings = experiment.settings.resolved(pipe.folder)
            wanted = list(shapes.specs(experiment.kinds or KINDS, experiment.count, settings.size, settings.frames))
            items = shapes.run({"model": shapes.editor(pipe, settings)}, wanted, home / "items.jsonl", None, progress)
            last = next(iter(reversed(read_metrics(home, "validation"))), {})
            outcomes.append(Outcome(arm, seed, shapes.summary(items), {key: last[key] for key in ("loss", "noise_loss", "frame_loss") if key in last}))
            (output / "outcomes.json").write_text(json.dumps([dataclasses.asdict(each) for each in outcomes], indent=2) + "\n")
            (output / "table.md").write_text(table(experiment, outcomes) + "\n")
    return outcomes


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95% interval over seeds (Student's t)."""
    mean = float(np.mean(values))
    if len(values) - 1 not in STUDENT:
        return f"{mean:.3f}"
    half = STUDENT[len(values) - 1] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def table(experiment: Experiment, outcomes: list[Outcome]) -> str:
    """Markdown. passed: pooled over seeds, Wilson's interval; the others: mean over seeds ± Student's."""
    lines = [experiment.question, "", "| arm | seeds | passed [95%] | edit shown | PSNR to truth | flicker | noise loss | frame loss |", "|---|---|---|---|---|---|---|---|"]
    for arm in experiment.arms:
        own = [each for each in outcomes if each.arm == arm]
        if not own:
            continue
        count = sum(each.summary["count"] for each in own)
        passed = sum(round(each.summary["passed"]["share"] * each.summary["count"]) for each in own)
        low, high = wilson(passed, count)
        cells = [arm, str(len(own)), f"{100 * passed / count:.1f}% [{100 * low:.0f}, {100 * high:.0f}]"]
        cells += [interval([each.summary["success"]["share"] for each in own]), interval([each.summary["psnr"]["db"] for each in own])]
        cells += [interval([each.summary["flicker"]["mean"] for each in own])]
        cells += [interval([each.validation.get(key, math.nan) for each in own]) for key in ("noise_loss", "frame_loss")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
