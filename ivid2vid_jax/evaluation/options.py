"""The options of `evaluate`, and which of them belong together."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import tyro

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import names

CLIP_SET_OPTIONS = (
    "metrics",
    "clip_model",
    "inception",
    "root",
    "columns",
    "split",
    "clip_size",
    "clip_fps",
    "clip_frames",
    "identity",
    "shard",
)
SHAPES_OPTIONS = ("count", "kinds", "editors", "engine", "sheets", "grid_text", "grid_video")
SAMPLING_OPTIONS = (
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
    """Evaluates edits of held-out clips of the shapes world, or of any set of clips.

    On the shapes world the true edit is known, and baselines are evaluated beside the model. On
    other clips the metrics are those of the paper and of the field. Run a stopped evaluation again
    to continue it.
    """

    # a pipeline folder or a training run (default: the embedded shapes-edit)
    model: str | None = None
    # shapes, shapes-crowded; a dataset of prepare (held-out rows, with their true edits); a list of
    # clips, a folder with instructions.csv, LOVEU-TGVE-2023, cars, tai-chi, movie, city, school
    data: str = "shapes"
    # instead of --model: a folder of finished edits, ID.mp4 (gif, webp, ...) or ID/ with frames
    edited: Path | None = None
    shown: int = 12  # clips shown in the HTML report
    # metrics of evaluation/metrics.py (default: all whose weights are given); this option and
    # those up to --shard are not for --data shapes
    metrics: tuple[str, ...] = ()
    # CLIP model of the clip_* metrics: on the Hugging Face hub, a folder, or shapes-clip
    clip_model: str | None = None
    inception: Path | None = None  # pytorch-fid's weights, for fid and kid
    root: Path = Path("data")  # folder that holds cars, tai-chi, movie, city and school
    # column names of a list: src=original_image tgt=edited_image prompt=edit_prompt
    columns: tuple[str, ...] = ()
    split: str = "validation"  # of a dataset of prepare
    # pixels: clips are first reduced to this length of the shorter side, never enlarged
    clip_size: int = 256
    clip_fps: float | None = None  # resample clips to this frame rate (default: keep theirs)
    clip_frames: int | None = None  # evaluate only the first frames, this many (default: all)
    # edit with an instruction to change nothing, and measure what changes; with --model
    identity: bool = False
    # folder of another editor's edits of the same set: writes an A/B page instead of a report
    against: Path | None = None
    # answer CSVs that participants sent from an A/B page: counts them; --output: the page's folder
    votes: tuple[Path, ...] = ()
    # I/N: evaluate every N-th edit, starting at the I-th; the last process to finish writes the
    # complete report
    shard: str = "0/1"
    # a file of configs/experiments/: trains and compares its recipes; takes --output, and --model
    # and --data to override the file's
    experiment: Path | None = None
    # folder of the results: index.html, report.json, items.csv, clips; a stopped run continues here
    output: Path = Path("evaluation")
    # clips of each kind of edit; this option and those up to --grid-video are for --data shapes
    count: int = 40
    kinds: tuple[str, ...] = ()  # kinds of edit (default: those of training)
    # editors to evaluate; also shared_noise and tune_a_video, which receive the true captions
    editors: tuple[str, ...] = ("model", "per frame", "copy", "vae")
    # a data engine recipe: the base and settings of shared_noise and tune_a_video (default:
    # SynthesisConfig())
    engine: Path | None = None
    sheets: int = 2  # contact sheets of each kind
    # instead of --editors: text scales to try, each with each of --grid-video
    grid_text: tuple[float, ...] = ()
    grid_video: tuple[float, ...] = ()  # video scales to try, each with each of --grid-text
    # sampler steps; defaults of this option and the next ones: the model folder's
    steps: int | None = None
    text_scale: float | None = None  # guidance towards the instruction
    video_scale: float | None = None  # guidance towards the source clip
    sampler: Annotated[str | None, tyro.conf.arg(help=names.SAMPLER_HELP)] = None
    guide_from: float | None = None  # guidance starts at this fraction of the steps
    guide_to: float | None = None  # guidance ends before this fraction of the steps
    shared_noise: float | None = None  # fraction of the noise shared by all frames, 0 to 1
    seed: int = 0  # seed of the sampler
    # compute precision: float32, bfloat16 or auto (CLIP scores with auto: float32)
    dtype: str = "auto"


def reject_options(args: EvaluateArgs, options: Collection[str], reason: str) -> None:
    """Raises UserError that lists those of the named options that differ from their defaults."""
    given = [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(args)
        if field.name in options and getattr(args, field.name) != field.default
    ]
    if given:
        raise UserError(f"{', '.join(given)}: {reason}")
