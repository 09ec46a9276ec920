"""`python -m ivid2vid_jax.edit`: edit a clip by an instruction.

python -m ivid2vid_jax.edit --instruction "make the circle blue"        # the embedded pipeline on a clip of its own world
python -m ivid2vid_jax.edit --model timbrooks/instruct-pix2pix --video in.mp4 --instruction "make it snow" --output out.mp4
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.errors import UserError, check_instruction
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.utils.versions import versions


@dataclasses.dataclass
class EditArgs:
    """Edits a clip by an instruction. Whatever is left out comes from the model folder's sampling.json."""

    instruction: str  # what to change, e.g. "make it snow"
    video: Path | None = (
        None  # the clip: a video, gif, webp, image, or a folder of frames or the bare name of an embedded clip (default: the first of those)
    )
    output: Path = Path(
        "edited.mp4"
    )  # .mp4 or .webm (sound kept), .gif, .webp, .png for a still, or the name of a new folder for frames
    model: str | None = (
        None  # a pipeline folder, a training run, or a model of the Hugging Face hub, "owner/name" (default: the embedded shapes-edit)
    )
    steps: int | None = None  # sampler steps
    text_scale: float | None = None  # guidance towards the instruction
    video_scale: float | None = None  # guidance towards the source clip
    seed: int = 0
    sampler: str | None = None  # ddim, euler_ancestral or dpm++
    size: int | None = (
        None  # pixels of the longer side inside the model; the output has the input's size
    )
    frames: int | None = None  # frames of one window; longer clips go through overlapping windows
    fps: float | None = None  # resample the clip to this rate first
    negative: str = ""  # what to steer away from
    start: float | None = None  # seconds; edit from here
    end: float | None = None  # seconds; edit up to here
    eta: float = 0.0  # ddim: share of fresh noise, 0 to 1
    rescale: float = 0.0  # guidance rescale, 0 to 1
    guide_from: float | None = None  # guidance acts on the steps from this share of them on,
    guide_to: float | None = None  # and before this one; the other steps take a third of the time
    shared_noise: float | None = (
        None  # share of the noise that all frames have in common, 0 to 1: more makes frames alike
    )
    devices: int | None = (
        None  # how many share the work: a clip's frames, a long clip's windows (default: all)
    )
    profile: Path | None = None  # folder for a trace of the sampling, for TensorBoard or xprof
    dtype: str = (
        "auto"  # arithmetic: float32, bfloat16, or auto (float32 on CPU, bfloat16 on TPU and GPU)
    )
    variant: str | None = None  # "fp16" picks a model's fp16 files
    compare: bool = False  # also write a side-by-side clip and a contact sheet


def run(args: EditArgs) -> None:
    """Edits `args.video` to `args.output` and writes the settings beside it; UserError for bad input, with nothing written."""
    from ivid2vid_jax import assets
    from ivid2vid_jax.video import compare
    from ivid2vid_jax.video.fit import ResizePlan
    from ivid2vid_jax.video.read import is_still, open_clip
    from ivid2vid_jax.video.write import CONTAINERS, check_output, write_clip

    check_instruction(args.instruction)
    check_output(args.output)
    video = assets.clip(args.video)
    clip = open_clip(video, args.start, args.end, args.fps)
    if args.output.exists() and args.output.resolve() == video.resolve():
        raise UserError(f"{args.output}: is the input clip; name another output")
    if clip.is_container and clip.has_one_frame():
        raise UserError(
            f"{video}: holds one frame in the chosen range and a clip needs two; to edit a still give it as a .png or .jpg"
        )

    if is_still(args.output) and not clip.has_one_frame():
        raise UserError(
            f"{args.output}: is a still image, but the clip has more than one frame; give .mp4, .gif or a folder name"
        )

    from ivid2vid_jax.inference import pipeline
    from ivid2vid_jax.parallel import (
        runtime,  # after the checks: importing JAX takes a second
    )

    pipe = pipeline.load(args.model, args.dtype, args.variant, devices=args.devices)
    settings = pipeline.EditSettings.from_args(args).resolve(pipe.folder)
    fit = ResizePlan.plan((clip.height, clip.width), settings.size, pipe.factor)

    times = []

    def pixels():
        with Progress("encoding") as progress:
            for frame in progress.wrap(clip.frames()):
                times.append(frame.time)
                yield frame.pixels

    with Progress("sampling") as progress, runtime.profile_trace(args.profile):
        edited = pipe.edit_frames(pixels(), args.instruction, settings, fit, progress)
    rate = clip.fps or clip.rate
    sound = clip if args.output.suffix.lower() in CONTAINERS else None
    if clip.has_audio and sound is None:
        print(
            f"note: {args.output.suffix or 'a folder'} holds no sound; the sound track is left out",
            file=sys.stderr,
        )
    with Progress("writing", len(times)) as progress:
        write_clip(args.output, progress.wrap(edited), times, rate, sound)
    record = {
        "command": shlex.join(["python", "-m", "ivid2vid_jax.edit", *sys.argv[1:]]),
        "arguments": vars(args),
        "settings": vars(settings),
    }
    record |= {"frames": len(times), "versions": versions(), "weights": pipe.folder.fingerprint()}
    beside(args.output, ".json").write_text(json.dumps(record, indent=2, default=str) + "\n")
    written = [args.output, beside(args.output, ".json")]
    if args.compare:
        written += compare.write_comparison(clip, args.output, args.instruction, times, rate)
    print("\n".join(f"wrote {path}" for path in written))


def beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)


if __name__ == "__main__":
    main(EditArgs, run)
