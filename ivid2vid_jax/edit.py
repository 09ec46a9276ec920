"""`python -m ivid2vid_jax.edit`: edit a clip by an instruction.

python -m ivid2vid_jax.edit --instruction "make the circle blue"   # embedded model and clip
python -m ivid2vid_jax.edit --model timbrooks/instruct-pix2pix --video in.mp4 \
    --instruction "make it snow" --output out.mp4
"""

import dataclasses
import json
import shlex
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ivid2vid_jax.errors import UserError, check_instruction
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.utils.versions import versions

if TYPE_CHECKING:
    from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
    from ivid2vid_jax.inference.settings import ResolvedSettings
    from ivid2vid_jax.video.read import Clip
    from ivid2vid_jax.video.sound import SoundPlan


@dataclasses.dataclass
class EditArgs:
    """Edits a clip by an instruction. Defaults of sampling come from the model's sampling.json."""

    instruction: str  # what to change, e.g. "make it snow"
    # video, gif, webp, image, folder of frames, or name of an embedded clip (default: the first
    # embedded clip)
    video: Path | None = None
    # .mp4 or .webm (with sound), .gif, .webp, .png for a still image, or a new folder for frames
    output: Path = Path("edited.mp4")
    # pipeline folder, training run, or Hugging Face model "owner/name" (default: the embedded
    # shapes-edit)
    model: str | None = None
    steps: int | None = None  # sampler steps
    text_scale: float | None = None  # text guidance scale
    video_scale: float | None = None  # video guidance scale
    seed: int = 0  # random seed
    sampler: str | None = None  # ddim, euler_ancestral or dpm++
    # pixels of the longer side inside the model; the output has the size of the input
    size: int | None = None
    # frames per window; longer clips are edited in overlapping windows
    frames: int | None = None
    fps: float | None = None  # resample the clip to this frame rate first
    negative: str = ""  # negative prompt
    start: float | None = None  # edit from this second
    end: float | None = None  # edit up to this second
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


def run(args: EditArgs) -> None:
    """Writes the edited clip, and its settings beside it; UserError for invalid input."""
    clip, sound = open_source(args)
    from ivid2vid_jax.inference import pipeline  # after the checks: importing JAX takes a second

    pipe = pipeline.load(args.model, args.dtype, args.variant, devices=args.devices)
    settings = pipeline.EditSettings.from_args(args).resolve(pipe.folder)
    times = edit_clip(args, pipe, clip, sound, settings)
    record = record_path(args.output)
    write_record(record, args, pipe, settings, len(times))
    written = [args.output, record]
    if args.compare:
        written += write_comparison(args, clip, times)
    print("\n".join(f"wrote {path}" for path in written))


def open_source(args: EditArgs) -> "tuple[Clip, SoundPlan | None]":
    """Opens the clip and plans its sound.

    Raises UserError for input that cannot be edited into the output.
    """
    from ivid2vid_jax import assets
    from ivid2vid_jax.video.frame_size import FrameLimit
    from ivid2vid_jax.video.read import is_still, open_clip
    from ivid2vid_jax.video.write import check_encodable, check_output, plan_sound

    check_instruction(args.instruction)
    check_output(args.output)
    video = assets.clip(args.video)
    if args.max_frames < 1:
        raise UserError(f"max_frames {args.max_frames} must be 1 or more")
    way_out = "take a part (--start, --end), lower its rate (--fps) or raise --max-frames"
    limit = FrameLimit(args.max_frames, way_out)
    clip = open_clip(video, args.start, args.end, args.fps, limit)
    if args.output.exists() and args.output.resolve() == video.resolve():
        raise UserError(f"{args.output}: is the input clip; name another output")
    if clip.is_container and clip.has_one_frame():
        raise UserError(
            f"{video}: has one frame in the given range; a clip needs two. "
            "To edit a still image give it as .png or .jpg"
        )
    if is_still(args.output) and not clip.has_one_frame():
        raise UserError(
            f"{args.output}: is a still image, but the clip has more than one frame; "
            "give .mp4, .gif or a folder name"
        )
    sound = plan_sound(args.output, clip)
    check_encodable(args.output, (clip.height, clip.width), clip.fps or clip.rate, sound)
    if clip.has_audio and sound is None:
        print(
            f"note: {args.output.suffix or 'a folder'} holds no sound; the sound track is dropped",
            file=sys.stderr,
        )
    if args.output.suffix.lower() == ".mp4" and (clip.height % 2 or clip.width % 2):
        print(
            f"note: {clip.width}x{clip.height} is odd; mp4 repeats the last row or column",
            file=sys.stderr,
        )
    return clip, sound


def edit_clip(
    args: EditArgs,
    pipe: "Pipeline",
    clip: "Clip",
    sound: "SoundPlan | None",
    settings: "ResolvedSettings",
) -> list[Fraction]:
    """Edits the clip to `args.output`; returns the times of its frames in seconds."""
    from ivid2vid_jax.parallel import runtime
    from ivid2vid_jax.video.fit import ResizePlan
    from ivid2vid_jax.video.rescue import write_clip_safely

    fit = ResizePlan.plan((clip.height, clip.width), settings.size, pipe.factor)
    times = []

    def pixels():
        with Progress("encoding") as progress:
            for frame in progress.wrap(clip.frames()):
                times.append(frame.time)
                yield frame.pixels

    with Progress("sampling") as progress, runtime.profile_trace(args.profile):
        edited = pipe.edit_frames(pixels(), args.instruction, settings, fit, progress)
    with Progress("writing", len(times)) as progress:
        frames = progress.wrap(edited)
        write_clip_safely(args.output, frames, times, clip.fps or clip.rate, sound)
    return times


def write_comparison(args: EditArgs, clip: "Clip", times: list[Fraction]) -> list[Path]:
    """Writes the side-by-side clip and the contact sheet; UserError if that fails."""
    from ivid2vid_jax.video import compare
    from ivid2vid_jax.video.rescue import FAULTS

    rate = clip.fps or clip.rate
    try:
        return compare.write_comparison(clip, args.output, args.instruction, times, rate)
    except FAULTS as error:
        raise UserError(
            f"{args.output}: is written, but its comparison with the source is not ({error})"
        ) from error


def record_path(output: Path) -> Path:
    """The JSON file beside an output: out.mp4 -> out.mp4.json."""
    return output.with_name(f"{output.name}.json")


def write_record(
    path: Path, args: EditArgs, pipe: "Pipeline", settings: "EditSettings", frames: int
) -> None:
    """Writes what is needed to repeat the edit."""
    record = {
        "command": shlex.join(["python", "-m", "ivid2vid_jax.edit", *sys.argv[1:]]),
        "arguments": vars(args),
        "settings": vars(settings),
        "frames": frames,
        "versions": versions(),
        "weights": pipe.folder.fingerprint(),
    }
    path.write_text(json.dumps(record, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main(EditArgs, run)
