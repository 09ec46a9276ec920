"""What the app does, without its page: looks at a clip, edits it, keeps what came of it in a folder of the job's own."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
from ivid2vid_jax.utils.errors import UserError, check_instruction
from ivid2vid_jax.utils.versions import versions
from ivid2vid_jax.video import compare
from ivid2vid_jax.video.fit import ResizePlan
from ivid2vid_jax.video.read import Clip, open_clip, open_container
from ivid2vid_jax.video.write import write_clip

WORDS = 500  # characters of an instruction


@dataclasses.dataclass(frozen=True)
class AppLimits:
    """What is taken on. Latents of the whole clip are held, pixels are not."""

    seconds: float = 20.0  # of a clip
    frames: int = 600  # of a clip
    side: int = 2048  # pixels of a frame's longer side
    megabytes: int = 100  # of an uploaded file
    steps: int = 100  # of the sampler
    waiting: int = 8  # jobs in line; those beyond are turned away

    def check(self) -> None:
        """Raises UserError that names a limit that lets nothing pass."""
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(
                    f"--limits.{field.name} {getattr(self, field.name)} must be above 0"
                )


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """One edit: the same request gives the same bytes."""

    clip: str  # path
    instruction: str
    text_scale: float
    video_scale: float
    steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class EditResult:
    """What a job left in its folder. request.clip is its own copy of the source."""

    request: EditRequest
    edited: Path
    pair: Path  # source and edit side by side
    record: Path  # JSON: all that the edit depends on


def open_checked_clip(path: str | None, limits: AppLimits) -> Clip:
    """The clip of a file that is within the limits, as far as its head tells; UserError that names the value, the limit and the way out."""
    if not path:
        raise UserError("there is no clip: upload one, or pick a sample")
    file = Path(path)
    if file.is_file() and file.stat().st_size > limits.megabytes * 2**20:
        raise UserError(
            f"the file has {file.stat().st_size / 2**20:.0f} MB, the limit is {limits.megabytes}; cut or compress it"
        )
    try:
        if seconds := stated_duration(file):
            check_length(seconds, limits)
        clip = open_clip(file)
    except UserError as error:
        raise UserError(
            str(error).replace(str(file), file.name)
        ) from error  # the folder is nobody's business
    if max(clip.height, clip.width) > limits.side:
        raise UserError(
            f"the frames are {clip.width}x{clip.height}, the limit is {limits.side} pixels a side; scale the clip down"
        )
    if clip.has_one_frame():
        raise UserError(f"{file.name}: holds one frame; a clip needs two")
    return clip


def stated_duration(file: Path) -> float | None:
    """Seconds of a video file as its head says, None where it does not."""
    if not Clip(file).is_container:
        return None
    with open_container(file) as container:
        return container.duration / 1e6 if container.duration else None


def check_length(seconds: float, limits: AppLimits) -> None:
    if seconds > limits.seconds:
        raise UserError(f"the clip has {seconds:.1f} s, the limit is {limits.seconds:g}; cut it")


def check_request(request: EditRequest, limits: AppLimits) -> None:
    """UserError for an instruction or steps that are not taken on; the scales and the seed are checked with the other settings."""
    check_instruction(request.instruction)
    if len(request.instruction) > WORDS:
        raise UserError(
            f"the instruction has {len(request.instruction)} characters, the limit is {WORDS}"
        )
    if not 1 <= request.steps <= limits.steps:
        raise UserError(f"{request.steps} steps: choose 1 to {limits.steps}")


def run_edit(
    pipe: Pipeline,
    request: EditRequest,
    limits: AppLimits,
    home: Path,
    progress: Callable[[str, int, int | None], None],
) -> EditResult:
    """Edits a clip into a new folder in `home`, which holds everything of the job or, where it fails, is gone.

    progress(what, done, total or None) is called on the way. Raises UserError for what is not taken on.
    """
    check_request(request, limits)
    clip = open_checked_clip(request.clip, limits)
    settings = EditSettings.from_args(request).resolve(pipe.folder)
    fit = ResizePlan.plan((clip.height, clip.width), settings.size, pipe.factor)
    folder = Path(tempfile.mkdtemp(prefix="job-", dir=home))
    try:
        source = folder / f"source{clip.path.suffix.lower()}"
        shutil.copyfile(clip.path, source)
        clip = dataclasses.replace(clip, path=source)
        result = EditResult(
            dataclasses.replace(request, clip=str(source)),
            folder / "edited.mp4",
            folder / "side-by-side.mp4",
            folder / "record.json",
        )
        times = []

        def pixels() -> Iterator[np.ndarray]:
            for frame in clip.frames():
                check_length(float(frame.time), limits)
                if len(times) == limits.frames:
                    raise UserError(
                        f"the clip has more than {limits.frames} frames, the limit; cut it, or lower its rate"
                    )
                times.append(frame.time)
                progress("encoding", len(times), None)
                yield frame.pixels

        edited = pipe.edit_frames(
            pixels(),
            request.instruction,
            settings,
            fit,
            lambda done, total: progress("sampling", done, total),
        )
        write_clip(
            result.edited, count_frames(edited, len(times), progress), times, clip.rate, clip
        )
        write_clip(result.pair, compare.side_by_side(clip, result.edited), times, clip.rate)
        record: dict[str, Any] = {
            "request": vars(request) | {"clip": Path(request.clip).name},
            "settings": vars(settings),
            "frames": len(times),
        }
        record |= {"versions": versions(), "weights": pipe.folder.fingerprint()}
        result.record.write_text(json.dumps(record, indent=2, default=str) + "\n")
        return result
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def count_frames(
    frames: Iterator[np.ndarray], total: int, progress: Callable[[str, int, int | None], None]
) -> Iterator[np.ndarray]:
    for i, frame in enumerate(frames, 1):
        progress("writing", i, total)
        yield frame


def remove_results(results: list[EditResult]) -> None:
    """Removes the jobs' folders."""
    for result in results:
        shutil.rmtree(result.edited.parent, ignore_errors=True)
