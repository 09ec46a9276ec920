r"""`python -m ivid2vid_jax.evaluate`: evaluates an editor on the shapes world or other clips.

Edits of held-out clips of the shapes world, where the true edit is known:

    python -m ivid2vid_jax.evaluate --model shapes-edit --data shapes
    python -m ivid2vid_jax.evaluate --editors model "per frame" tune_a_video --output editors
    python -m ivid2vid_jax.evaluate --grid-text 1 2 3 5 --grid-video 1 1.5 2 --output grid

Any set of clips, by the metrics of the paper and of the field; finished edits or a model's:

    python -m ivid2vid_jax.evaluate --edited DIR --data DIR --output report
    python -m ivid2vid_jax.evaluate --edited DIR --data LIST.csv --output report
    python -m ivid2vid_jax.evaluate --edited DIR --data LOVEU-TGVE-2023 --output report
    python -m ivid2vid_jax.evaluate --model DIR --data DIR --output report \
        --clip-model openai/clip-vit-large-patch14 --inception pt_inception-2015-12-05-6726825d.pth

A blind A/B page for human raters, and recipes that are trained and compared:

    python -m ivid2vid_jax.evaluate --edited OURS --against THEIRS --data DIR --output study
    python -m ivid2vid_jax.evaluate --output DIR \
        --experiment configs/experiments/frame_difference.py
"""

import dataclasses
import logging
import runpy
from pathlib import Path

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.options import (
    CLIP_SET_OPTIONS,
    SAMPLING_OPTIONS,
    SHAPES_OPTIONS,
    EvaluateArgs,
    reject_options,
)
from ivid2vid_jax.utils import cli, names

log = logging.getLogger(__name__)

# Options that --help shows.
COMMON = (
    *("--model", "--data", "--edited", "--output", "--metrics", "--clip-model", "--against"),
    *("--experiment", "--count", "--kinds", "--editors", "--steps", "--seed"),
)


def run(args: EvaluateArgs) -> None:
    """Runs the evaluation that the options select, writes its report and prints its table."""
    if args.experiment:
        others = {field.name for field in dataclasses.fields(args)}
        others -= {"experiment", "model", "data", "output"}
        reject_options(args, others, "the experiment's file sets everything but --model and --data")
        run_experiment(args, args.experiment)
        return
    from ivid2vid_jax.data.shapes import WORLDS

    if args.data in WORLDS and not (args.edited or args.votes or args.against):
        from ivid2vid_jax.experiments import evaluate_shapes

        reject_options(
            args, CLIP_SET_OPTIONS, "--data shapes has its own metrics; use these with --data DIR"
        )
        evaluate_shapes.run(args)
        return
    from ivid2vid_jax.evaluation import evaluate_clips

    reject_options(
        args, SHAPES_OPTIONS, "these are for the shapes world, --data shapes or shapes-crowded"
    )
    if args.edited:
        reject_options(
            args, SAMPLING_OPTIONS, "--edited evaluates finished edits: nothing is sampled"
        )
    evaluate_clips.run(args)


def run_experiment(args: EvaluateArgs, file: Path) -> None:
    """Trains and evaluates every arm and seed of an experiment's file; prints its tables."""
    from ivid2vid_jax.experiments import experiment
    from ivid2vid_jax.training.loop import train

    if not file.is_file():
        raise UserError(f"--experiment {file}: no such file")
    loaded = runpy.run_path(str(file)).get("experiment")
    if not isinstance(loaded, experiment.Experiment):
        raise UserError(f"--experiment {file}: defines no `experiment = Experiment(...)`")
    data = None if args.data == EvaluateArgs.data else args.data
    loaded = loaded.with_overrides(args.model, data)

    def log_progress(done: int, total: int) -> None:
        if done % 20 == 0:
            log.info("evaluated %d of %d", done, total)

    outcomes = experiment.run(loaded, args.output, train, log_progress)
    print(experiment.tables(loaded, outcomes, args.output))
    print(f"wrote {args.output}")


def main() -> None:
    """Runs the command line."""
    cli.main(EvaluateArgs, run, aliases=names.SETTINGS, common=COMMON)


if __name__ == "__main__":
    main()
