"""The edits of the app without its page: checks a clip, edits it, keeps the results in a folder."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.app.limits import MAX_INSTRUCTION_LENGTH, AppLimits
from ivid2vid_jax.errors import UserError, check_instruction
from ivid2vid_jax.inference.domain import domain_warnings
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
from ivid2vid_jax.inference.settings import ResolvedSettings
from ivid2vid_jax.utils.versions import versions
from ivid2vid_jax.video import compare
from ivid2vid_jax.video.fit import ResizePlan
from ivid2vid_jax.video.frame_size import FrameLimit
from ivid2vid_jax.video.read import Clip, open_clip, open_container
from ivid2vid_jax.video.rescue import FAULTS, RescueError, write_clip_safely
from ivid2vid_jax.video.write import check_encodable, plan_sound, write_clip

log = logging.getLogger(__name__)

UPLOAD_PREFIX = "upload-"  # of the folders of `to_playable`

Progress = Callable[[str, int, int | None], None]  # (stage, done, total)


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """Inputs of one edit. Equal requests give identical files."""

    clip: str  # path
    instruction: str
    text_scale: float
    video_scale: float
    steps: int
    seed: int
    negative: str = ""
    sampler: str | None = None  # None: the model's
    size: int | None = None  # pixels of the longer side inside the model; None: the model's


@dataclasses.dataclass(frozen=True)
class EditResult:
    """The files of one edit, in a folder of their own."""

    request: EditRequest  # its clip is a copy of the source in the folder
    edited: Path
    pair: Path  # source and edit side by side; missing if it could not be written
    record: Path  # JSON: request, settings, versions, checksums of the weights
    note: str = ""  # what could not be written


def open_checked_clip(path: str | None, limits: AppLimits) -> Clip:
    """Opens a clip and checks it against the limits, as far as its header states them."""
    if not path:
        raise UserError("no clip: upload one or pick a sample")
    file = Path(path)
    if file.is_file() and file.stat().st_size > limits.megabytes * 2**20:
        raise UserError(
            f"the file has {file.stat().st_size / 2**20:.0f} MB, the limit is {limits.megabytes}; "
            "cut or compress it"
        )
    try:
        if seconds := stated_duration(file):
            check_length(seconds, limits)
        clip = open_clip(file, limit=FrameLimit(limits.frames))
    except UserError as error:
        raise without_folder(error, file, file.name) from error
    if max(clip.height, clip.width) > limits.side:
        raise UserError(
            f"the frames are {clip.width}x{clip.height}, the limit is {limits.side} pixels a side; "
            "scale the clip down"
        )
    if clip.has_one_frame():
        raise UserError(f"{file.name}: has one frame; a clip needs two")
    return clip


def to_playable(path: str, limits: AppLimits, home: Path) -> Path:
    """Writes a clip of any supported kind as an mp4, which browsers show, to a folder in `home`.

    Raises UserError like `open_checked_clip`.
    """
    clip = open_checked_clip(path, limits)
    target = Path(tempfile.mkdtemp(prefix=UPLOAD_PREFIX, dir=home)) / f"{clip.path.stem}.mp4"
    try:
        times = [frame.time for frame in clip.frames()]
        pixels = (frame.pixels for frame in clip.frames())
        write_clip(target, pixels, times, clip.rate, plan_sound(target, clip))
    except FAULTS as error:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise without_folder(UserError(str(error)), clip.path, clip.path.name) from error
    return target


def without_folder(error: UserError, file: Path, name: str) -> UserError:
    """The error with a file's name instead of its path, which visitors do not see."""
    return UserError(str(error).replace(str(file), name))


def stated_duration(file: Path) -> float | None:
    """Seconds of a video file as its header states; None if it does not."""
    if not Clip(file).is_container:
        return None
    with open_container(file) as container:
        return container.duration / 1e6 if container.duration else None


def check_length(seconds: float, limits: AppLimits) -> None:
    """Raises UserError for a clip that is too long."""
    if seconds > limits.seconds:
        raise UserError(f"the clip has {seconds:.1f} s, the limit is {limits.seconds:g}; cut it")


def check_request(request: EditRequest, limits: AppLimits) -> None:
    """Checks instruction and steps; EditSettings.resolve checks the scales and the seed."""
    check_instruction(request.instruction)
    length = len(request.instruction)
    if length > MAX_INSTRUCTION_LENGTH:
        raise UserError(
            f"the instruction has {length} characters, the limit is {MAX_INSTRUCTION_LENGTH}"
        )
    if not 1 <= request.steps <= limits.steps:
        raise UserError(f"steps {request.steps} must be between 1 and {limits.steps}")
    if len(request.negative) > MAX_INSTRUCTION_LENGTH:
        raise UserError(
            f"the negative prompt has {len(request.negative)} characters, the limit is "
            f"{MAX_INSTRUCTION_LENGTH}"
        )
    if request.size is not None and not 1 <= request.size <= limits.side:
        raise UserError(f"size {request.size} must be between 1 and {limits.side}")


def run_edit(
    pipe: Pipeline,
    request: EditRequest,
    limits: AppLimits,
    home: Path,
    progress: Progress,
) -> EditResult:
    """Edits a clip into a new folder in `home`; the folder is removed if the edit fails.

    If the edit can be written without its sound only, or without the comparison, the result's note
    says so. If it can be written as a folder of frames only, the folder stays and an error says so.

    Args:
        pipe: the editor.
        request: clip and settings.
        limits: UserError for a request beyond them.
        home: parent of the new folder.
        progress: called as progress(stage, done, total or None).
    """
    check_request(request, limits)
    clip = open_checked_clip(request.clip, limits)
    settings = EditSettings.from_args(request).resolve(pipe.folder)
    folder = Path(tempfile.mkdtemp(prefix="job-", dir=home))
    try:
        source = folder / f"source{clip.path.suffix.lower()}"
        shutil.copyfile(clip.path, source)
        result = EditResult(
            dataclasses.replace(request, clip=str(source)),
            folder / "edited.mp4",
            folder / "side-by-side.mp4",
            folder / "record.json",
        )
        clip = dataclasses.replace(clip, path=source)
        frames, note = edit_and_write(pipe, clip, result, settings, limits, progress)
        record: dict[str, Any] = {
            "request": vars(request) | {"clip": Path(request.clip).name},
            "settings": vars(settings),
            "frames": frames,
            "versions": versions(),
            "weights": pipe.folder.fingerprint(),
        }
        result.record.write_text(json.dumps(record, indent=2, default=str) + "\n")
        warnings = domain_warnings(
            pipe, (frame.pixels for frame in clip.frames()), request.instruction
        )
        return dataclasses.replace(result, note="; ".join(filter(None, [note, *warnings])))
    except RescueError:
        raise
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise without_folder(error, source, Path(request.clip).name) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def edit_and_write(
    pipe: Pipeline,
    clip: Clip,
    result: EditResult,
    settings: ResolvedSettings,
    limits: AppLimits,
    progress: Progress,
) -> tuple[int, str]:
    """Writes the edited clip and the comparison with its source.

    Returns the number of frames and a note on what could not be written.
    """
    sound = plan_sound(result.edited, clip)
    check_encodable(result.edited, (clip.height, clip.width), clip.rate, sound)
    fit = ResizePlan.plan((clip.height, clip.width), settings.size, pipe.factor)
    times: list[Fraction] = []
    edited = pipe.edit_frames(
        frames_within_limits(clip, fit.inner, times, limits, progress),
        result.request.instruction,
        settings,
        fit,
        lambda done, total: progress("sampling", done, total),
    )
    notes = []
    try:
        frames = CountedFrames(edited, len(times), progress)
        write_clip_safely(result.edited, frames, times, clip.rate, sound)
    except RescueError as error:
        if error.saved != result.edited:
            raise
        notes.append(str(without_folder(error, result.edited, result.edited.name)))
    try:
        write_clip(result.pair, compare.side_by_side(clip, result.edited), times, clip.rate)
    except FAULTS as error:
        log.warning("%s: %s", result.pair, error)
        notes.append("the comparison with the source could not be written")
    return len(times), "; ".join(notes)


def frames_within_limits(
    clip: Clip,
    size: tuple[int, int],
    times: list[Fraction],
    limits: AppLimits,
    progress: Progress,
) -> Iterator[np.ndarray]:
    """Yields the frames [H, W, 3] of a clip in `size` and appends their times to `times`.

    Raises UserError for a clip that is too long: its file may not state its length.
    """
    for frame in clip.frames(size):
        check_length(float(frame.time), limits)
        times.append(frame.time)
        progress("encoding", len(times), None)
        yield frame.pixels


@dataclasses.dataclass(frozen=True)
class CountedFrames:
    """Frames that report how many have been written. They can be iterated again."""

    frames: Iterable[np.ndarray]
    total: int
    progress: Progress

    def __iter__(self) -> Iterator[np.ndarray]:
        for i, frame in enumerate(self.frames, 1):
            self.progress("writing", i, self.total)
            yield frame


def remove_results(results: list[EditResult]) -> None:
    """Removes the folders of results."""
    for result in results:
        shutil.rmtree(result.edited.parent, ignore_errors=True)
