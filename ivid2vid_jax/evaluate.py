"""`python -m ivid2vid_jax.evaluate`: measure an editor, where the truth is known and on any set of clips.

python -m ivid2vid_jax.evaluate --model shapes-edit --data shapes
python -m ivid2vid_jax.evaluate --edited DIR --data DIR|LIST.csv|LOVEU-TGVE-2023 --output report    # the paper's and the field's metrics
python -m ivid2vid_jax.evaluate --model DIR --data DIR --clip-model openai/clip-vit-large-patch14 --inception pt_inception-2015-12-05-6726825d.pth
python -m ivid2vid_jax.evaluate --edited OURS --against THEIRS --data DIR --output study            # a blind A/B page for people
python -m ivid2vid_jax.evaluate --grid-text 1 2 3 5 --grid-video 1 1.5 2 --output grid       # which guidance scales?
python -m ivid2vid_jax.evaluate --editors model "per frame" tune_a_video shared_noise --output rivals    # the same tasks by other ways of editing
python -m ivid2vid_jax.evaluate --experiment configs/experiments/frame_difference.py --output DIR    # train and compare recipes
"""

import dataclasses
import itertools
import json
import logging
import runpy
from collections.abc import Sequence
from pathlib import Path

from ivid2vid_jax.utils.cli import main, recipe_loader
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.utils.versions import versions

log = logging.getLogger(__name__)

OF_SETS = (
    "metrics",
    "clip_model",
    "inception",
    "root",
    "clip_size",
    "clip_fps",
    "clip_frames",
    "identity",
    "shard",
)
OF_SHAPES = ("count", "kinds", "editors", "engine", "sheets", "grid_text", "grid_video")
OF_SAMPLING = (
    "steps",
    "text_scale",
    "video_scale",
    "sampler",
    "guide_from",
    "guide_to",
    "shared_noise",
)


@dataclasses.dataclass
class EvaluateArgs:
    """Judges edits: of held-out clips of the shapes world, from pixels and beside two baselines, or of any set of clips, by the metrics of the paper and
    of the field. A stopped run goes on when it is run again.
    """

    model: str | None = (
        None  # a pipeline folder or a training run (default: the embedded shapes-edit)
    )
    data: str = "shapes"  # shapes, shapes-crowded; a list of clips, a folder with instructions.csv, LOVEU-TGVE-2023, cars, tai-chi, movie, city, school
    edited: Path | None = (
        None  # folder of finished edits ID.mp4 (gif, webp, ..., or ID/ with frames), in the place of --model
    )
    shown: int = 12  # clips on the page
    metrics: tuple[
        str, ...
    ] = ()  # of evaluation/metrics.py (default: all whose weights are given); this and what follows up to --shard: not for shapes
    clip_model: str | None = None  # CLIP for clip_*: of the hub, a folder, or shapes-clip
    inception: Path | None = None  # pytorch-fid's weights for fid and kid
    root: Path = Path("data")  # where cars, tai-chi, movie, city and school lie
    clip_size: int = (
        256  # clips are judged at this many pixels of the shorter side, never enlarged,
    )
    clip_fps: float | None = None  # at this rate (default: their own),
    clip_frames: int | None = None  # and up to this frame
    identity: bool = (
        False  # --model edits by an instruction to change nothing: what it changes all the same
    )
    against: Path | None = (
        None  # folder of another editor's edits of the same set: writes an A/B page in the place of a report
    )
    votes: tuple[
        Path, ...
    ] = ()  # CSVs that people have sent from such a page: counts them, with --output, the page's folder
    shard: str = "0/1"  # I/N: this process judges every N-th edit, from the I-th on; the last to finish has the whole report
    experiment: Path | None = (
        None  # a file of configs/experiments/: trains and compares; with --output, and --model and --data in the place of the file's
    )
    output: Path = Path(
        "evaluation"
    )  # folder of the results: index.html, report.json, items.csv, clips; what a stopped run goes on from
    count: int = (
        40  # clips of each kind; this and what follows up to --grid-video: for shapes alone
    )
    kinds: tuple[str, ...] = ()  # kinds of edit (default: those of training)
    editors: tuple[str, ...] = (
        "model",
        "per frame",
        "copy",
        "vae",
    )  # what is judged; also shared_noise, tune_a_video, which are told the true captions
    engine: Path | None = (
        None  # a recipe of the data engine, whose base and settings these two have (default: SynthesisConfig())
    )
    sheets: int = 2  # contact sheets of each kind
    grid_text: tuple[
        float, ...
    ] = ()  # text scales to try, each with each of --grid-video, in the place of --editors
    grid_video: tuple[float, ...] = ()
    steps: int | None = (
        None  # sampler steps; this and what follows come from the model folder where they are left out
    )
    text_scale: float | None = None
    video_scale: float | None = None
    sampler: str | None = None
    guide_from: float | None = None  # guidance acts on the steps from this share of them on,
    guide_to: float | None = None  # and before this one
    shared_noise: float | None = None  # share of the noise that all frames have in common
    seed: int = 0  # of the sampling
    dtype: str = "auto"  # arithmetic: float32, bfloat16, or auto (CLIP's scores: float32)


def run(args: EvaluateArgs) -> None:
    """Writes the report and prints its table."""
    if args.experiment:
        refuse(
            args,
            {field.name for field in dataclasses.fields(args)}
            - {"experiment", "model", "data", "output"},
            "the experiment's file says all but --model and --data",
        )
        return run_experiment(args)
    from ivid2vid_jax.data.shapes import ALL_KINDS, WORLDS

    if args.data not in WORLDS or args.edited or args.votes or args.against:
        refuse(args, OF_SHAPES, "these are for the shapes world, --data shapes or shapes-crowded")
        refuse(
            args,
            OF_SAMPLING if args.edited else (),
            "--edited judges finished edits, for which nothing is sampled",
        )
        from ivid2vid_jax.evaluation import evaluate_clips

        return evaluate_clips.run(args, claim)
    from ivid2vid_jax.evaluation import shapes_benchmark, shapes_report
    from ivid2vid_jax.experiments import engine_editors, guidance_grid
    from ivid2vid_jax.inference import pipeline
    from ivid2vid_jax.synthesis.config import SynthesisConfig
    from ivid2vid_jax.synthesis.editors import EDITORS
    from ivid2vid_jax.video import compare

    refuse(args, OF_SETS, "the shapes world has its own judge; these go with --data DIR")
    if not 1 <= args.count <= 10**6 or args.sheets < 0:
        raise UserError(
            f"--count {args.count} must be between 1 and 1000000, --sheets {args.sheets} not negative"
        )
    kinds = args.kinds or WORLDS[args.data]
    if unknown := [kind for kind in kinds if kind not in ALL_KINDS]:
        raise UserError(f"--kinds {' '.join(unknown)}: choose from {', '.join(ALL_KINDS)}")
    pipe = pipeline.load(args.model, args.dtype)
    settings = pipeline.EditSettings.from_args(args).resolve(pipe.folder)
    pipe.check_editor()
    points = list(itertools.product(args.grid_text, args.grid_video))
    if bool(args.grid_text) != bool(args.grid_video):
        raise UserError(
            "--grid-text and --grid-video go together: each text scale is tried with each video scale"
        )
    known = (
        guidance_grid.editors(pipe, settings, points)
        if points
        else shapes_benchmark.editors(pipe, settings)
    )
    judged = tuple(known) if points else args.editors
    if unknown := [name for name in judged if name not in (*known, *EDITORS)]:
        raise UserError(
            f"--editors {' '.join(map(repr, unknown))}: choose from {', '.join(map(repr, (*known, *EDITORS)))}"
        )

    record = {
        "model": args.model or "shapes-edit",
        "weights": pipe.folder.fingerprint(),
        "settings": vars(settings),
        "world": args.data,
        "seed_of_clips": shapes_benchmark.SEED,
    }
    if told := [name for name in judged if name in EDITORS]:
        engine = recipe_loader(SynthesisConfig)(args.engine) if args.engine else SynthesisConfig()
        base = pipeline.load(engine.base, args.dtype)
        known |= engine_editors.engine_editors(base, engine, told)
        record |= {"base": base.folder.fingerprint()} | {
            name: dataclasses.asdict(getattr(engine, name)) for name in told
        }
    claim(args.output, record)

    def animation(item: shapes_benchmark.ShapesItem) -> Path:
        return args.output / "clips" / f"{item.kind}-{item.index}.gif"

    def show(item: shapes_benchmark.ShapesItem, truth, edited) -> None:
        if item.editor == "model" and item.index < args.sheets:
            mark = "passed" if item.passed else "failed"
            compare.write_panels(
                animation(item),
                [truth.source, edited, truth.edited],
                f"{truth.instruction} ({mark})",
                truth.fps,
            )

    (args.output / "clips").mkdir(parents=True, exist_ok=True)
    wanted = list(
        shapes_benchmark.specs(kinds, args.count, settings.size, settings.frames, args.data)
    )
    with Progress("editing") as progress:
        items = shapes_benchmark.run_benchmark(
            {name: known[name] for name in judged},
            wanted,
            args.output / "items.jsonl",
            show,
            progress,
        )
    found = shapes_benchmark.report(items)
    text = shapes_benchmark.table(found)
    (args.output / "report.md").write_text(text + "\n")
    print(text)
    if points:
        guidance_grid.plot(
            found,
            points,
            args.output / "grid.png",
            f"{args.model or 'shapes-edit'}: {args.count} held-out clips of each of {len(kinds)} kinds",
        )
        print(f"best: {guidance_grid.name(guidance_grid.best(found, points))}")
    plots = [args.output / "grid.png"] if points else []
    shapes_report.write(
        args.output,
        record | {"versions": versions()},
        items,
        found,
        shapes_report.clips(items, wanted, animation, args.shown),
        plots,
    )
    print(f"wrote {args.output / 'index.html'}")


def refuse(args: EvaluateArgs, names: Sequence[str], why: str) -> None:
    """UserError that names those of these options that were given."""
    if alone := [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(args)
        if field.name in names and getattr(args, field.name) != field.default
    ]:
        raise UserError(f"{', '.join(alone)}: {why}")


def run_experiment(args: EvaluateArgs) -> None:
    """Trains and judges every arm and seed of an experiment's file; prints its table."""
    from ivid2vid_jax.experiments import experiment
    from ivid2vid_jax.training.loop import train

    if not args.experiment.is_file():
        raise UserError(f"--experiment {args.experiment}: no such file")
    found = runpy.run_path(str(args.experiment)).get("experiment")
    if not isinstance(found, experiment.Experiment):
        raise UserError(f"--experiment {args.experiment}: says no `experiment = Experiment(...)`")
    found = found.with_overrides(args.model, None if args.data == EvaluateArgs.data else args.data)
    outcomes = experiment.run(
        found,
        args.output,
        train,
        lambda done, total: log.info("judged %d of %d", done, total) if done % 20 == 0 else None,
    )
    print(experiment.tables(found, outcomes, args.output))
    print(f"wrote {args.output}")


def claim(folder: Path, record: dict, grows: Sequence[str] = ()) -> None:
    """Makes the folder one of this model and these settings; UserError where it holds another's items.

    grows: entries, dicts, of which only what both runs have is compared; the folder keeps what either has.
    """
    file, record = folder / "run.json", json.loads(json.dumps(record))
    if file.is_file():
        before = json.loads(file.read_text())
        for name in grows:
            old, new = before.get(name, {}), record.get(name, {})
            before[name], record[name] = new | old, old | new
        if before != record:
            changed = [name for name in before | record if before.get(name) != record.get(name)]
            raise UserError(
                f"--output {folder}: holds results of another evaluation ({', '.join(changed)} differ); name a new folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output {folder}: is a folder of something else; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2) + "\n"
    if not file.is_file() or file.read_text() != text:  # another process may be reading it
        file.write_text(text)


if __name__ == "__main__":
    main(EvaluateArgs, run)
