"""Experiments: several recipes and seeds, one benchmark, one table. A stopped experiment resumes.

A file of configs/experiments/ defines `experiment = Experiment(...)`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ivid2vid_jax.data.shapes import KINDS
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.evaluation.report import to_jsonable
from ivid2vid_jax.experiments import engine_triplets
from ivid2vid_jax.experiments.engine_triplets import EngineTriplets
from ivid2vid_jax.inference.pipeline import EditSettings, load
from ivid2vid_jax.training import encode_latents
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.training.pipeline_export import exported_step
from ivid2vid_jax.utils.intervals import ratio_interval, wilson_interval

FRAME_LOSS = "frame loss"
VALIDATION_KEYS = ("loss", "noise_loss", "frame_loss")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A comparison of training recipes.

    Attributes:
        question: heading of the table.
        arms: name -> recipe; outputs and seeds are set here.
        seeds: of each arm.
        kinds: kinds of edit of the benchmark; () means all.
        count: held-out clips of each kind that evaluate every run.
        settings: of the sampler.
        synthesized: arm -> triplets made by the data engine, which replace the recipe's data.
        against: the arm that the others are compared with; None: no column of shares, differences
            to the first arm.
        phrasings: indices of the sentence templates of the benchmark's instructions; () means all.
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
        unknown = {*self.synthesized, self.reference} - {*self.arms}
        if unknown:
            raise UserError(
                f"experiment: {', '.join(sorted(unknown))} of synthesized or against is no arm; "
                f"arms: {', '.join(self.arms)}"
            )

    @property
    def reference(self) -> str:
        """The arm that differences are taken to."""
        return self.against or next(iter(self.arms))

    def with_overrides(self, model: str | None, data: str | None) -> "Experiment":
        """Replaces the model and the data of all arms, where given.

        Arms with synthesized triplets keep their data.
        """

        def override(arm: str, recipe: TrainConfig) -> TrainConfig:
            return dataclasses.replace(
                recipe,
                model=model or recipe.model,
                data=(data,) if data and arm not in self.synthesized else recipe.data,
            )

        arms = {arm: override(arm, recipe) for arm, recipe in self.arms.items()}
        return dataclasses.replace(self, arms=arms)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one run.

    Attributes:
        arm: of the experiment.
        seed: of the training.
        summary: of the benchmark.
        validation: losses of the last validation.
        passed: which clips of the benchmark passed.
    """

    arm: str
    seed: int
    summary: dict
    validation: dict[str, float]
    passed: tuple[bool, ...]


# ---- running ----


def run(
    experiment: Experiment,
    output: Path,
    train: Callable[[TrainConfig], Path],
    progress: shapes_benchmark.Progress | None = None,
) -> list[Outcome]:
    """Trains and evaluates every arm with every seed, in output/<arm>/<seed>.

    Synthesizes data first where an arm needs it. Runs go seed by seed, so that a stopped experiment
    has compared all arms on the same seeds.
    """
    outcomes: list[Outcome] = []
    arms = {arm: with_synthesized_data(experiment, arm, output) for arm in experiment.arms}
    for seed in experiment.seeds:
        for arm, recipe in arms.items():
            folder = output / arm / str(seed)
            train(dataclasses.replace(recipe, output=str(folder), seed=seed))
            step = exported_step(folder)
            if step != recipe.steps:
                raise UserError(
                    f"{folder}: training stopped before step {recipe.steps}; run the same command "
                    "to continue"
                )
            outcomes.append(evaluate_run(experiment, arm, seed, folder, step, progress))
            (output / "outcomes.json").write_text(
                json.dumps(to_jsonable(list(map(dataclasses.asdict, outcomes))), indent=2) + "\n"
            )
            (output / "table.md").write_text(tables(experiment, outcomes, output) + "\n")
    return outcomes


def evaluate_run(
    experiment: Experiment,
    arm: str,
    seed: int,
    folder: Path,
    step: int,
    progress: shapes_benchmark.Progress | None = None,
) -> Outcome:
    """Evaluates a finished run on the benchmark."""
    pipe = load(folder)
    settings = experiment.settings.resolve(pipe.folder)
    assert settings.size is not None and settings.frames is not None
    specs = list(
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
        specs,
        items_file(folder, step, settings, experiment.phrasings),
        None,
        progress,
    )
    records = read_metrics(folder, "validation")
    last: dict[str, Any] = records[-1] if records else {}
    validation = {key: last[key] for key in VALIDATION_KEYS if key in last}
    passed = tuple(item.passed for item in items)
    return Outcome(arm, seed, shapes_benchmark.summary(items), validation, passed)


def items_file(run: Path, step: int, settings: EditSettings, phrasings: tuple[int, ...]) -> Path:
    """The file of a run's benchmark items; its name depends on step, sampling and phrasings."""
    key = hashlib.sha256(json.dumps([step, vars(settings), phrasings]).encode()).hexdigest()[:12]
    return run / f"items-{key}.jsonl"


def with_synthesized_data(experiment: Experiment, arm: str, output: Path) -> TrainConfig:
    """An arm's recipe on its synthesized triplets, or unchanged if it has none.

    Encodes their latents if the recipe reads a latent cache.
    """
    recipe = experiment.arms[arm]
    if arm not in experiment.synthesized:
        return recipe
    data = engine_triplets.make_triplets(
        experiment.synthesized[arm], triplets_folder(output, arm), output / "made"
    )
    if recipe.loader.cached:
        assert recipe.model, "an experiment's recipes start from a model"
        encode_latents.write_latent_cache(
            data, recipe.model, recipe.loader, augmentations=1, text=False
        )
    return dataclasses.replace(recipe, data=(str(data),))


def triplets_folder(output: Path, arm: str) -> Path:
    """The folder of an arm's synthesized triplets."""
    return output / arm / "made"


# ---- tables ----

Column = Callable[[Outcome], float | None]


def warping(outcome: Outcome, key: str) -> float | None:
    """1000 x a warping error of the summary; None without OpenCV."""
    return 1000 * outcome.summary[key]["mean"] if key in outcome.summary else None


# A column is left out if no run has a value.
MEANS: dict[str, Column] = {
    "edit shown, %": lambda outcome: 100 * outcome.summary["success"]["share"],
    "PSNR to true edit": lambda outcome: outcome.summary["psnr"]["db"],
    "frame difference minus true edit's": lambda outcome: outcome.summary["gap"]["mean"],
    "flicker": lambda outcome: outcome.summary["flicker"]["mean"],
    "warping error x1000": lambda outcome: warping(outcome, "warping"),
    "true edit's warping error x1000": lambda outcome: warping(outcome, "warping_truth"),
    "noise loss": lambda outcome: outcome.validation.get("noise_loss"),
    FRAME_LOSS: lambda outcome: outcome.validation.get("frame_loss"),
}


def tables(experiment: Experiment, outcomes: list[Outcome], output: Path) -> str:
    """Markdown: the runs' table, their paired differences, and that of synthesized triplets."""
    folders = {arm: triplets_folder(output, arm) for arm in experiment.synthesized}
    parts = [table(experiment, outcomes), paired_differences(experiment, outcomes)]
    if folders:
        parts.append(engine_triplets.table(folders))
    return "\n\n".join(parts)


def table(experiment: Experiment, outcomes: list[Outcome]) -> str:
    """Markdown: a row per arm.

    "passed" is the mean over seeds with Wilson's interval for the number of clips, because all
    seeds edit the same clips. Other columns are means over seeds with Student's interval.
    """
    means = columns(experiment, outcomes)
    against = experiment.against
    head = ["arm", "seeds", "passed [95%]"]
    head += [f"passed relative to {against} [95%]"] if against else []
    clips = len(outcomes[0].passed) if outcomes else 0
    lines = [
        experiment.question,
        "",
        f"passed: mean over seeds, with Wilson's interval for the {clips} clips that all runs "
        "edit; other columns: mean over seeds ± half-width of Student's 95% interval.",
        "",
        *markdown_head([*head, *means]),
    ]
    by_arm = {arm: [run for run in outcomes if run.arm == arm] for arm in experiment.arms}
    for arm, runs in by_arm.items():
        if runs:
            cells = [arm, str(len(runs)), passed_share(runs)]
            cells += [relative_share(runs, by_arm[against])] if against else []
            cells += [interval(map(value, runs)) for value in means.values()]
            lines.append(markdown_row(cells))
    return "\n".join(lines)


def paired_differences(experiment: Experiment, outcomes: list[Outcome]) -> str:
    """Markdown: each arm's means minus those of the reference arm, paired by seed.

    What all runs of a seed have in common cancels.
    """
    reference, means = experiment.reference, columns(experiment, outcomes)
    reference_runs = {run.seed: run for run in outcomes if run.arm == reference}
    lines = markdown_head([f"minus {reference}, paired by seed", "seeds", *means])
    for arm in experiment.arms:
        pairs = [
            (run, reference_runs[run.seed])
            for run in outcomes
            if run.arm == arm and run.seed in reference_runs
        ]
        if pairs and arm != reference:
            cells = [
                interval(difference(value(run), value(other)) for run, other in pairs)
                for value in means.values()
            ]
            lines.append(markdown_row([arm, str(len(pairs)), *cells]))
    return "\n".join(lines)


def columns(experiment: Experiment, outcomes: list[Outcome]) -> dict[str, Column]:
    """The columns of MEANS that a run has a value for.

    Without the frame loss if the recipes differ in their loss: it is each recipe's own.
    """
    comparable = len({recipe.loss for recipe in experiment.arms.values()}) == 1
    return {
        name: value
        for name, value in MEANS.items()
        if (comparable or name != FRAME_LOSS) and any(value(run) is not None for run in outcomes)
    }


def markdown_head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [markdown_row(titles), "|---" * len(titles) + "|"]


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def difference(a: float | None, b: float | None) -> float | None:
    """The difference a - b, None if one is missing."""
    return None if a is None or b is None else a - b


def interval(values: Iterable[float | None]) -> str:
    """Mean ± half-width of Student's 95% interval over seeds; "-" if a seed has no value."""
    values = list(values)
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return "-"
    mean = float(np.mean(present))
    if len(present) == 1:
        return f"{mean:.3f}"
    error = float(np.std(present, ddof=1)) / math.sqrt(len(present))
    half = float(stats.t.ppf(0.975, len(present) - 1)) * error
    return f"{mean:.3f} ± {half:.3f}"


def passed_share(runs: list[Outcome]) -> str:
    """The mean share of passed clips, with Wilson's interval for the number of clips."""
    passed = sum(sum(run.passed) for run in runs) / len(runs)
    count = sum(len(run.passed) for run in runs) / len(runs)
    low, high = wilson_interval(passed, count)
    return f"{100 * passed / count:.1f}% [{100 * low:.0f}, {100 * high:.0f}]"


def relative_share(runs: list[Outcome], reference_runs: list[Outcome]) -> str:
    """Passed clips as a percentage of the reference's, on the seeds that both have.

    "-" if the reference passes none.
    """
    pairs = [
        (run.passed, other.passed)
        for run in runs
        for other in reference_runs
        if run.seed == other.seed
    ]
    if not pairs:
        return "-"
    passed, reference = np.array(pairs, float).transpose(1, 0, 2)
    if not reference.any():
        return "-"
    low, high = ratio_interval(passed, reference)
    share = passed.mean() / reference.mean()
    return f"{100 * share:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
