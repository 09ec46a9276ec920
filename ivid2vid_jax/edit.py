"""`python -m ivid2vid_jax.edit`: edit clips by instructions.

python -m ivid2vid_jax.edit --instruction "make the circle blue"   # embedded model and clip
python -m ivid2vid_jax.edit --model timbrooks/instruct-pix2pix --video in.mp4 \
    --instruction "make it snow" --output out.mp4
python -m ivid2vid_jax.edit --model MODEL --video clips/*.mp4 --instruction "make it snow" \
    "make it autumn" --seed 0 1 --output edits
"""

import contextlib
import dataclasses
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from ivid2vid_jax.errors import UserError, check_instruction
from ivid2vid_jax.utils import cli, names
from ivid2vid_jax.utils.progress import Progress, duration
from ivid2vid_jax.utils.versions import versions

if TYPE_CHECKING:
    import numpy as np

    from ivid2vid_jax.inference.edit_jobs import EditJob
    from ivid2vid_jax.inference.pipeline import Pipeline
    from ivid2vid_jax.inference.settings import EditSettings, ResolvedSettings
    from ivid2vid_jax.video.fit import ResizePlan
    from ivid2vid_jax.video.read import Clip
    from ivid2vid_jax.video.sound import SoundPlan

log = logging.getLogger(__name__)

# Options that --help shows.
COMMON = (
    *("--instruction", "--video", "--output", "--model", "--start", "--end", "--preview"),
    *("--steps", "--size", "--text-scale", "--video-scale", "--negative", "--seed", "--compare"),
)
LONG_EDIT = 600.0  # seconds from which on the ways to a shorter one are named


@dataclasses.dataclass
class EditArgs:
    """Edits a clip by an instruction. Defaults of sampling come from the model's sampling.json."""

    # what to change, e.g. "make it snow"; several instructions make several edits
    instruction: tuple[str, ...] = ()
    # video, gif, webp, image, folder of frames, or name of an embedded clip (default: the first
    # embedded clip); several, a folder of clips or a pattern make several edits
    video: tuple[Path, ...] = ()
    # .mp4 or .webm (with sound), .gif, .webp, .png for a still image, or a new folder for frames
    # (default: edited.mp4); several edits: a folder (default: edited)
    output: Path | None = None
    # pipeline folder, training run, or Hugging Face model "owner/name" (default: the embedded
    # shapes-edit)
    model: str | None = None
    steps: int | None = None  # sampler steps
    text_scale: float | None = None  # text guidance scale
    video_scale: float | None = None  # video guidance scale
    seed: tuple[int, ...] = (0,)  # random seed; several seeds make several edits
    sampler: Annotated[str | None, tyro.conf.arg(help=names.SAMPLER_HELP)] = None
    # pixels of the longer side inside the model; the output has the size of the input
    size: int | None = None
    # frames per window; longer clips are edited in overlapping windows
    frames: int | None = None
    fps: float | None = None  # resample the clip to this frame rate first
    negative: str = ""  # negative prompt
    start: float | None = None  # edit from this second
    end: float | None = None  # edit up to this second
    # edit only the first frame (of --start), and write it beside the source to NAME_preview.png,
    # with a number if that exists
    preview: bool = False
    overwrite: bool = False  # replace an existing output; otherwise the new one gets a number
    # list of edits, .csv or .jsonl, with the columns instruction, video, seed, output
    edit_list: Path | None = None
    # a longer clip is an error; memory holds the latents of all frames
    max_frames: int = 10_000
    eta: float = 0.0  # ddim: amount of fresh noise, 0 to 1
    rescale: float = 0.0  # guidance rescale, 0 to 1
    # start of the guidance interval, a share of the steps, 0 to 1; the other steps are unguided
    # and take a third of the time
    guide_from: float | None = None
    guide_to: float | None = None  # end of the guidance interval, a share of the steps, 0 to 1
    # share of the initial noise that all frames have in common, 0 to 1; more makes frames similar
    shared_noise: float | None = None
    devices: int | None = None  # number of devices to use (default: all)
    profile: Path | None = None  # folder for a sampling trace for TensorBoard or xprof
    # compute dtype: float32, bfloat16, or auto (float32 on CPU, bfloat16 on TPU and GPU)
    dtype: str = "auto"
    variant: str | None = None  # "fp16": load the model's fp16 files
    compare: bool = False  # also write a side-by-side clip and a contact sheet


class OpenJob(NamedTuple):
    """An edit whose clip was opened and whose output was checked."""

    job: "EditJob"
    clip: "Clip"
    sound: "SoundPlan | None" = None
    notes: tuple[str, ...] = ()  # to print once nothing else can be wrong


def run(args: EditArgs) -> None:
    """Writes the edited clips, and the settings of each beside it; UserError for invalid input."""
    from ivid2vid_jax.inference.edit_jobs import plan_jobs

    jobs = plan_jobs(args.video, args.instruction, args.seed, args.output, args.edit_list)
    failures = Failures(len(jobs))
    open_jobs = []
    for job in jobs:
        with failures.of(job):
            open_jobs.append(open_source(args, job))
    from ivid2vid_jax.inference import pipeline  # after the checks: importing JAX takes a second

    settings = edit_settings(args)
    if not open_jobs:
        failures.raise_if_any()
    pipe = pipeline.load(args.model, args.dtype, args.variant, devices=args.devices)
    for number, open_job in enumerate(open_jobs, 1):
        job = open_job.job
        if len(jobs) > 1:
            print(f"[{number}/{len(open_jobs)}] {job.video}: {job.instruction}", file=sys.stderr)
        with failures.of(job):
            resolved = dataclasses.replace(settings, seed=job.seed).resolve(pipe.folder)
            for note in open_job.notes:
                print(f"note: {note}", file=sys.stderr)
            warn_of_domain(pipe, open_job.clip, job.instruction)
            if args.preview:
                print_written(write_preview(pipe, open_job, resolved))
            else:
                edit_clip(args, pipe, open_job, resolved)
    failures.raise_if_any()


class Failures:
    """Errors of edits: a single edit fails at once, the others of several go on."""

    def __init__(self, jobs: int):
        self.jobs, self.count = jobs, 0

    @contextlib.contextmanager
    def of(self, job: "EditJob") -> Iterator[None]:
        """Prints and counts a UserError of one of several edits."""
        try:
            yield
        except UserError as error:
            if self.jobs == 1:
                raise
            self.count += 1
            message = str(error).removeprefix(f"{job.video}: ")
            print(f"error: {job.video}: {message}", file=sys.stderr)

    def raise_if_any(self) -> None:
        """UserError if any edit failed."""
        if self.count:
            raise UserError(f"{self.count} of {self.jobs} edits failed; see the errors above")


def edit_settings(args: EditArgs) -> "EditSettings":
    """The settings that the arguments give; UserError for a value out of its range."""
    if not args.seed:
        raise UserError("--seed needs a number")
    from ivid2vid_jax.inference.settings import EditSettings

    settings = EditSettings.from_args(args, seed=args.seed[0])
    settings.check()
    return settings


def open_source(args: EditArgs, job: "EditJob") -> OpenJob:
    """Opens the clip, chooses its output and plans its sound.

    Raises UserError for input that cannot be edited into the output.
    """
    from ivid2vid_jax.video.frame_size import FrameLimit
    from ivid2vid_jax.video.read import open_clip
    from ivid2vid_jax.video.write import check_output, unused_path

    check_instruction(job.instruction)
    if args.max_frames < 1:
        raise UserError(f"max_frames {args.max_frames} must be 1 or more")
    way_out = "take a part (--start, --end), lower its rate (--fps) or raise --max-frames"
    limit = FrameLimit(args.max_frames, way_out)
    clip = open_clip(job.video, args.start, args.end, args.fps, limit)
    if job.output.exists() and job.output.resolve() == job.video.resolve():
        raise UserError(f"{job.output}: is the input clip; name another output")
    wanted = job.output
    if args.preview:
        wanted = wanted.with_name(f"{wanted.stem}_preview.png")
    output = wanted if args.overwrite else unused_path(wanted)
    check_output(output)
    moved = f"{wanted} exists; writing {output} (--overwrite replaces it)"
    notes = () if output == wanted else (moved,)
    open_job = OpenJob(dataclasses.replace(job, output=output), clip, None, notes)
    return open_job if args.preview else plan_output(open_job)


def plan_output(open_job: OpenJob) -> OpenJob:
    """Adds the sound; UserError for a clip that cannot be edited into the output."""
    from ivid2vid_jax.video.read import is_still
    from ivid2vid_jax.video.write import check_encodable, plan_sound

    job, clip, _, notes = open_job
    output = job.output
    if clip.is_container and clip.has_one_frame():
        raise UserError(
            f"{clip.path}: has one frame in the given range; a clip needs two. "
            "To edit a still image give it as .png or .jpg"
        )
    if is_still(output) and not clip.has_one_frame():
        raise UserError(
            f"{output}: is a still image, but the clip has more than one frame; "
            "give .mp4, .gif or a folder name"
        )
    sound = plan_sound(output, clip)
    check_encodable(output, (clip.height, clip.width), clip.fps or clip.rate, sound)
    if clip.has_audio and sound is None:
        notes += (f"{output.suffix or 'a folder'} holds no sound; the sound track is dropped",)
    if output.suffix.lower() == ".mp4" and (clip.height % 2 or clip.width % 2):
        notes += (f"{clip.width}x{clip.height} is odd; mp4 repeats the last row or column",)
    return OpenJob(job, clip, sound, notes)


def warn_of_domain(pipe: "Pipeline", clip: "Clip", instruction: str) -> None:
    """Logs a warning if the model is an embedded one and the edit is outside its world."""
    from ivid2vid_jax.inference.domain import domain_warnings

    frames = (frame.pixels for frame in clip.frames())
    for warning in domain_warnings(pipe, frames, instruction):
        log.warning(warning)


def write_preview(pipe: "Pipeline", open_job: OpenJob, settings: "ResolvedSettings") -> Path:
    """Edits the first frame; writes it beside the source to the output, and returns that."""
    import numpy as np
    from PIL import Image

    from ivid2vid_jax.utils.atomic import atomic_path

    path = open_job.job.output
    frame = next(open_job.clip.frames()).pixels
    edited = pipe.edit(frame[None], open_job.job.instruction, **vars(settings))
    with atomic_path(path) as target:
        Image.fromarray(np.concatenate([frame, edited[0]], axis=1)).save(target, format="PNG")
    return path


class SamplingProgress(Progress):
    """The progress bar of an edit, which names the ways to a shorter one if it will take long."""

    first_done: float | None = None  # when the first evaluation, which compiles, was done

    def __call__(self, done: int, total: int) -> None:
        """See `Progress`."""
        super().__call__(done, total)
        if done == 1:
            self.first_done = time.monotonic()
        elif done == 2 and self.first_done is not None:
            expected = (time.monotonic() - self.first_done) * (total - 1)
            if expected > LONG_EDIT:
                self.bar.write(
                    f"this edit takes about {duration(expected)}. Shorter: fewer --steps, a "
                    "smaller --size, a part (--end), or one frame first (--preview)",
                    file=sys.stderr,
                )


def edit_clip(
    args: EditArgs, pipe: "Pipeline", open_job: OpenJob, settings: "ResolvedSettings"
) -> None:
    """Edits a clip to its output and prints what it has written.

    Ctrl-C while the output is written ends the command once its record is written too.
    """
    from ivid2vid_jax.parallel import runtime
    from ivid2vid_jax.utils.signals import deferred_signals
    from ivid2vid_jax.video.fit import ResizePlan
    from ivid2vid_jax.video.rescue import write_clip_safely

    job, clip, sound, _ = open_job
    fit = ResizePlan.plan((clip.height, clip.width), settings.size, pipe.factor)
    times: list[Fraction] = []
    with SamplingProgress("sampling") as sampling, runtime.profile_trace(args.profile):

        def pixels() -> Iterator["np.ndarray"]:
            with Progress("encoding") as encoding:
                for frame in encoding.wrap(clip.frames(fit.inner)):
                    times.append(frame.time)
                    yield frame.pixels
            print(work(len(times), fit, settings), file=sys.stderr)
            sampling.expect_compilation()

        edited = pipe.edit_frames(pixels(), job.instruction, settings, fit, sampling)
    with deferred_signals():
        with Progress("writing", len(times)) as writing:
            frames = writing.wrap(edited)
            write_clip_safely(job.output, frames, times, clip.fps or clip.rate, sound)
        record = job.output.with_name(f"{job.output.name}.json")
        write_record(record, args, job, pipe, settings, len(times))
        print_written(job.output, record)
    if args.compare:
        print_written(*write_comparison(job, clip, times))


def print_written(*paths: Path) -> None:
    """Prints what was written."""
    print("\n".join(f"wrote {path}" for path in paths), flush=True)


def work(frames: int, fit: "ResizePlan", settings: "ResolvedSettings") -> str:
    """What the sampling of an edit consists of, in words."""
    from ivid2vid_jax.video.windows import plan_windows

    windows = len(plan_windows(frames, settings.frames))
    height, width = fit.padded
    parts = [f"{frames} frames at {width}x{height}", f"{settings.steps} steps"]
    if windows > 1:
        parts.insert(1, f"{windows} windows of {settings.frames}")
    return ", ".join(parts)


def write_comparison(job: "EditJob", clip: "Clip", times: list[Fraction]) -> list[Path]:
    """Writes the side-by-side clip and the contact sheet; UserError if that fails."""
    from ivid2vid_jax.video import compare
    from ivid2vid_jax.video.rescue import FAULTS

    rate = clip.fps or clip.rate
    try:
        return compare.write_comparison(clip, job.output, job.instruction, times, rate)
    except FAULTS as error:
        raise UserError(
            f"{job.output}: is written, but its comparison with the source is not ({error})"
        ) from error


def write_record(
    path: Path,
    args: EditArgs,
    job: "EditJob",
    pipe: "Pipeline",
    settings: "ResolvedSettings",
    frames: int,
) -> None:
    """Writes what is needed to repeat the edit."""
    record = {
        "command": shlex.join(["python", "-m", "ivid2vid_jax.edit", *sys.argv[1:]]),
        "edit": vars(job),
        "arguments": vars(args),
        "settings": vars(settings),
        "frames": frames,
        "versions": versions(),
        "weights": pipe.folder.fingerprint(),
    }
    path.write_text(json.dumps(record, indent=2, default=str) + "\n")


def main() -> None:
    """Runs the command line."""
    cli.main(EditArgs, run, aliases=names.SETTINGS, common=COMMON)


if __name__ == "__main__":
    main()
