"""`evaluate --data shapes`: several editors on the same held-out clips of the shapes world."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ivid2vid_jax.data.shapes import ALL_KINDS, WORLDS
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import shapes_benchmark, shapes_report
from ivid2vid_jax.evaluation.options import EvaluateArgs
from ivid2vid_jax.evaluation.output_folder import bind_to_settings
from ivid2vid_jax.evaluation.shapes_benchmark import Editor, ShapesItem
from ivid2vid_jax.experiments import engine_editors, guidance_grid
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import EDITORS
from ivid2vid_jax.utils.cli import recipe_loader
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.utils.versions import versions
from ivid2vid_jax.video import compare

DEFAULT_MODEL = "shapes-edit"


def run(args: EvaluateArgs) -> None:
    """Edits and evaluates the clips, writes the report and prints its table."""
    kinds = check_args(args)
    points = list(itertools.product(args.grid_text, args.grid_video))
    pipe = pipeline.load(args.model, args.dtype)
    settings = pipeline.EditSettings.from_args(args).resolve(pipe.folder)
    pipe.check_editor()
    assert settings.size is not None and settings.frames is not None
    editors, editors_record = select_editors(args, pipe, settings, points)
    record = {
        "model": args.model or DEFAULT_MODEL,
        "weights": pipe.folder.fingerprint(),
        "settings": vars(settings),
        "world": args.data,
        "seed_of_clips": shapes_benchmark.SEED,
    } | editors_record
    bind_to_settings(args.output, record)

    specs = list(
        shapes_benchmark.specs(kinds, args.count, settings.size, settings.frames, args.data)
    )
    clips = ClipFolder(args.output / "clips", args.sheets)
    with Progress("editing") as progress:
        items = shapes_benchmark.run_benchmark(
            editors, specs, args.output / "items.jsonl", clips.save, progress
        )
    report = shapes_benchmark.report(items)
    write_table(args.output, report)
    plots = write_grid(args, report, points, len(kinds)) if points else []
    shapes_report.write(
        args.output,
        record | {"versions": versions()},
        items,
        report,
        shapes_report.clips(items, specs, clips.path, args.shown),
        plots,
    )
    print(f"wrote {args.output / 'index.html'}")


def check_args(args: EvaluateArgs) -> Sequence[str]:
    """Returns the kinds of edit. Raises UserError for values out of range."""
    if not 1 <= args.count <= 10**6 or args.sheets < 0:
        raise UserError(
            f"--count {args.count} must be between 1 and 1000000, "
            f"--sheets {args.sheets} not negative"
        )
    kinds = args.kinds or WORLDS[args.data]
    if unknown := [kind for kind in kinds if kind not in ALL_KINDS]:
        raise UserError(f"--kinds {' '.join(unknown)}: choose from {', '.join(ALL_KINDS)}")
    if bool(args.grid_text) != bool(args.grid_video):
        raise UserError(
            "--grid-text and --grid-video go together: "
            "each text scale is tried with each video scale"
        )
    return kinds


def select_editors(
    args: EvaluateArgs,
    pipe: pipeline.Pipeline,
    settings: pipeline.EditSettings,
    points: Sequence[guidance_grid.Point],
) -> tuple[dict[str, Editor], dict]:
    """Returns the editors to evaluate by name, and what run.json records of them.

    With points of a guidance grid these are the editors, otherwise those of --editors.
    """
    if points:
        return guidance_grid.editors(pipe, settings, points), {}
    known = shapes_benchmark.editors(pipe, settings)
    if unknown := [name for name in args.editors if name not in (*known, *EDITORS)]:
        choices = ", ".join(map(repr, (*known, *EDITORS)))
        raise UserError(f"--editors {' '.join(map(repr, unknown))}: choose from {choices}")
    record: dict = {}
    if names := [name for name in args.editors if name in EDITORS]:
        engine = recipe_loader(SynthesisConfig)(args.engine) if args.engine else SynthesisConfig()
        base = pipeline.load(engine.base, args.dtype)
        known |= engine_editors.engine_editors(base, engine, names)
        record["base"] = base.folder.fingerprint()
        record |= {name: dataclasses.asdict(getattr(engine, name)) for name in names}
    return {name: known[name] for name in args.editors}, record


@dataclasses.dataclass(frozen=True)
class ClipFolder:
    """Animations of the model's edits of the first `count` clips of each kind."""

    folder: Path
    count: int

    def path(self, item: ShapesItem) -> Path:
        """Where the animation of an item is, if there is one."""
        return self.folder / f"{item.kind}-{item.index}.gif"

    def save(self, item: ShapesItem, truth: Triplet, edited: np.ndarray) -> None:
        """Writes source, edit and true edit side by side."""
        if item.editor == "model" and item.index < self.count:
            self.folder.mkdir(parents=True, exist_ok=True)
            verdict = "passed" if item.passed else "failed"
            compare.write_panels(
                self.path(item),
                [truth.source, edited, truth.edited],
                f"{truth.instruction} ({verdict})",
                truth.fps,
            )


def write_table(output: Path, report: dict) -> None:
    """Writes the report's table to report.md and prints it."""
    table = shapes_benchmark.table(report)
    (output / "report.md").write_text(table + "\n")
    print(table)


def write_grid(
    args: EvaluateArgs, report: dict, points: Sequence[guidance_grid.Point], kinds: int
) -> list[Path]:
    """Plots the guidance grid and prints its best point; returns the plots."""
    file = args.output / "grid.png"
    model = args.model or DEFAULT_MODEL
    title = f"{model}: {args.count} held-out clips of each of {kinds} kinds"
    guidance_grid.plot(report, points, file, title)
    print(f"best: {guidance_grid.name(guidance_grid.best(report, points))}")
    return [file]
