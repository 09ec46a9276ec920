"""Experiments: several recipes, several seeds, one protocol, one table. Every run resumes, so the whole can be stopped anywhere.

A file under configs/experiments/ exposes `experiment = Experiment(...)`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ivid2vid_jax.data.shapes import KINDS
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.evaluation.report import to_jsonable
from ivid2vid_jax.experiments import engine_triplets as making
from ivid2vid_jax.experiments.engine_triplets import EngineTriplets
from ivid2vid_jax.inference.pipeline import EditSettings, load
from ivid2vid_jax.training import encode_latents
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.training.pipeline_export import exported_step
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import ratio_interval, wilson_interval

# Student's t, two-sided 95%, by degrees of freedom (seeds less one)
STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}
MEANS = {  # column -> a run's number; a column that no run has a number for is left out
    "edit shown, %": lambda run: 100 * run.summary["success"]["share"],
    "PSNR to truth": lambda run: run.summary["psnr"]["db"],
    "frame difference less truth's": lambda run: run.summary["gap"]["mean"],
    "flicker": lambda run: run.summary["flicker"]["mean"],
    "warping error x1000": lambda run: (
        1000 * run.summary["warping"]["mean"] if "warping" in run.summary else None
    ),
    "the truth's own": lambda run: (
        1000 * run.summary["warping_truth"]["mean"] if "warping_truth" in run.summary else None
    ),
    "noise loss": lambda run: run.validation.get("noise_loss"),
    "frame loss": lambda run: run.validation.get("frame_loss"),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """arms: name -> recipe; their outputs and seeds are set here. count: held-out clips of each kind that judge every run.

    made: arm -> triplets that the data engine makes, in the place of the recipe's data. against: the arm of which the others' passed clips are told as a
    share. phrasings: numbers of the sentences in which the judged clips' instructions are said, () = all.
    """

    question: str
    arms: dict[str, TrainConfig]
    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = ()
    count: int = 10
    settings: EditSettings = EditSettings()
    synthesized: dict[str, EngineTriplets] = dataclasses.field(default_factory=dict)
    against: str | None = None
    phrasings: tuple[int, ...] = ()

    def __post_init__(self):
        if unknown := {*self.synthesized, self.against or next(iter(self.arms))} - {*self.arms}:
            raise UserError(
                f"experiment: {', '.join(sorted(unknown))} of made or against is no arm: {', '.join(self.arms)}"
            )

    def with_overrides(self, model: str | None, data: str | None) -> "Experiment":
        """The same from another net and on other data, where they are given; triplets that are made for an arm stay."""

        def other(arm: str, recipe: TrainConfig) -> TrainConfig:
            return dataclasses.replace(
                recipe,
                model=model or recipe.model,
                data=(data,) if data and arm not in self.synthesized else recipe.data,
            )

        return dataclasses.replace(
            self, arms={arm: other(arm, recipe) for arm, recipe in self.arms.items()}
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run: its arm, seed, summary on the benchmark, last validation, and which clips passed."""

    arm: str
    seed: int
    summary: dict
    validation: dict[str, float]
    passed: tuple[bool, ...]


def run(
    experiment: Experiment,
    output: Path,
    train: Callable[[TrainConfig], Path],
    progress: Callable | None = None,
) -> list[Outcome]:
    """Makes what is to be made, then trains and judges every arm with every seed, into output/<arm>/<seed>."""
    outcomes, arms = (
        [],
        {arm: with_synthesized_data(experiment, arm, output) for arm in experiment.arms},
    )
    for seed in (
        experiment.seeds
    ):  # seed by seed: a stopped experiment has compared all arms as often as any
        for arm, recipe in arms.items():
            home = output / arm / str(seed)
            train(dataclasses.replace(recipe, output=str(home), seed=seed))
            if (at := exported_step(home)) != recipe.steps:
                raise UserError(
                    f"{home}: told to stop at step {at} of {recipe.steps}; run the same command to go on"
                )
            pipe = load(home)
            settings = experiment.settings.resolve(pipe.folder)
            wanted = list(
                shapes_benchmark.specs(
                    experiment.kinds or KINDS,
                    experiment.count,
                    settings.size,
                    settings.frames,
                    phrasings=experiment.phrasings,
                )
            )
            items = shapes_benchmark.run_benchmark(
                {"model": shapes_benchmark.editor(pipe, settings)},
                wanted,
                items_file(home, at, settings, experiment.phrasings),
                None,
                progress,
            )
            last = next(iter(reversed(read_metrics(home, "validation"))), {})
            validation = {
                key: last[key] for key in ("loss", "noise_loss", "frame_loss") if key in last
            }
            outcomes.append(
                Outcome(
                    arm,
                    seed,
                    shapes_benchmark.summary(items),
                    validation,
                    tuple(item.passed for item in items),
                )
            )
            (output / "outcomes.json").write_text(
                json.dumps(to_jsonable([dataclasses.asdict(each) for each in outcomes]), indent=2)
                + "\n"
            )
            (output / "table.md").write_text(tables(experiment, outcomes, output) + "\n")
    return outcomes


def items_file(home: Path, step: int, settings: EditSettings, phrasings: tuple[int, ...]) -> Path:
    """Where a run's judged clips are kept: weights of another step, other sampling and other sentences are judged anew."""
    mark = hashlib.sha256(json.dumps([step, vars(settings), phrasings]).encode()).hexdigest()[:12]
    return home / f"items-{mark}.jsonl"


def with_synthesized_data(experiment: Experiment, arm: str, output: Path) -> TrainConfig:
    """An arm's recipe, on the triplets that are made for it; their latents are cached where the recipe reads a cache."""
    recipe = experiment.arms[arm]
    if arm not in experiment.synthesized:
        return recipe
    data = making.make_triplets(experiment.synthesized[arm], triplets(output, arm), output / "made")
    if recipe.loader.cached:
        encode_latents.write_latent_cache(
            data, recipe.model, recipe.loader, augmentations=1, text=False
        )
    return dataclasses.replace(recipe, data=(str(data),))


def triplets(output: Path, arm: str) -> Path:
    """Where those of an arm come to stand."""
    return output / arm / "made"


def interval(values: Iterable[float | None]) -> str:
    """Mean and half-width of the 95% interval over seeds (Student's t); "-" where a seed has no value."""
    values = list(values)
    if None in values:
        return "-"
    mean = float(np.mean(values))
    if len(values) - 1 not in STUDENT:
        return f"{mean:.3f}"
    half = STUDENT[len(values) - 1] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def columns(experiment: Experiment, outcomes: list[Outcome]) -> dict[str, Callable]:
    """Those of MEANS that any run has a number for. A run's frame loss is its own recipe's: where these differ, it compares nothing."""
    apart = {"frame loss"} if len({arm.loss for arm in experiment.arms.values()}) > 1 else set()
    return {
        name: of
        for name, of in MEANS.items()
        if name not in apart and any(of(each) is not None for each in outcomes)
    }


def table(experiment: Experiment, outcomes: list[Outcome]) -> str:
    """Markdown. passed: mean over seeds, Wilson's interval of as many clips as there are, since all seeds edit the same ones; as a share of another arm's:
    `ratio`'s; the others: mean over seeds ± Student's.
    """
    means = columns(experiment, outcomes)
    head = [
        "arm",
        "seeds",
        "passed [95%]",
        *([f"as a share of {experiment.against} [95%]"] if experiment.against else []),
        *means,
    ]
    clips = len(outcomes[0].passed) if outcomes else 0
    caption = f"passed: mean over seeds, Wilson's interval of the {clips} clips that all of them edit; the other columns: mean over seeds ± Student's."
    lines = [
        experiment.question,
        "",
        caption,
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for arm in experiment.arms:
        own = [each for each in outcomes if each.arm == arm]
        if not own:
            continue
        passed, count = (
            sum(map(of, own)) / len(own)
            for of in (lambda each: sum(each.passed), lambda each: len(each.passed))
        )
        low, high = wilson_interval(passed, count)
        cells = [
            arm,
            str(len(own)),
            f"{100 * passed / count:.1f}% [{100 * low:.0f}, {100 * high:.0f}]",
        ]
        if experiment.against:
            cells.append(
                compared(own, [each for each in outcomes if each.arm == experiment.against])
            )
        lines.append(
            "| " + " | ".join([*cells, *(interval(map(of, own)) for of in means.values())]) + " |"
        )
    return "\n".join(lines)


def paired(experiment: Experiment, outcomes: list[Outcome]) -> str:
    """Markdown: means less those of another arm (`against`, or the first), seed by seed ± Student's: what all runs of a seed have in common falls out."""
    other, means = experiment.against or next(iter(experiment.arms)), columns(experiment, outcomes)
    theirs = {each.seed: each for each in outcomes if each.arm == other}
    lines = [
        "| " + " | ".join([f"less {other}, seed by seed", "seeds", *means]) + " |",
        "|---" * (2 + len(means)) + "|",
    ]
    for arm in experiment.arms:
        pairs = [
            (each, theirs[each.seed])
            for each in outcomes
            if each.arm == arm and each.seed in theirs
        ]
        if pairs and arm != other:
            differences = (
                [
                    None if None in both else both[0] - both[1]
                    for both in ((of(a), of(b)) for a, b in pairs)
                ]
                for of in means.values()
            )
            lines.append(
                "| " + " | ".join([arm, str(len(pairs)), *map(interval, differences)]) + " |"
            )
    return "\n".join(lines)


def compared(own: list[Outcome], others: list[Outcome]) -> str:
    """Passed clips as a share of another arm's, by the seeds that both have; "-" where that one passes none."""
    pairs = [
        (mine.passed, other.passed) for mine in own for other in others if mine.seed == other.seed
    ]
    over, under = np.array(pairs, float).transpose(1, 0, 2) if pairs else np.zeros((2, 1, 1))
    if not under.any():
        return "-"
    low, high = ratio_interval(over, under)
    return f"{100 * over.mean() / under.mean():.0f}% [{100 * low:.0f}, {100 * high:.0f}]"


def tables(experiment: Experiment, outcomes: list[Outcome], output: Path) -> str:
    """The table of the runs, their differences seed by seed, and below that the triplets that were made."""
    made = {arm: triplets(output, arm) for arm in experiment.synthesized}
    return "\n\n".join(
        [
            table(experiment, outcomes),
            paired(experiment, outcomes),
            *([making.table(made)] if made else []),
        ]
    )
