"""Writing a clip so that frames that took long to compute are never lost."""

import errno
import logging
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.signals import deferred_signals
from ivid2vid_jax.video.sound import SoundPlan
from ivid2vid_jax.video.write import unused_path, write_clip

log = logging.getLogger(__name__)

# What encoders, disks and containers raise while a file is written.
FAULTS = (av.error.FFmpegError, OSError, ValueError, MemoryError, RuntimeError)


class RescueError(UserError):
    """Writing failed, and the frames are in `saved`: the clip without sound, or a folder."""

    def __init__(self, message: str, saved: Path):
        super().__init__(message)
        self.saved = saved


def write_clip_safely(
    path: Path,
    frames: Iterable[np.ndarray],
    times: list[Fraction],
    rate: Fraction,
    sound: SoundPlan | None = None,
) -> None:
    """`write_clip`; what goes wrong while writing costs the sound or the format, never the frames.

    If writing fails, it is tried without the sound; if that fails too, the frames are written
    losslessly to a folder beside the target, or to the system's temporary folder. A first SIGTERM
    or Ctrl-C is obeyed once the file is complete.

    Args:
        path: the target.
        frames: iterated once, and again after a failure: it must be re-iterable.
        times: see `write_clip`.
        rate: see `write_clip`.
        sound: see `write_clip`.

    Raises:
        RescueError: names what failed and where the frames are.
        UserError: there is no room for the frames anywhere.
    """
    with deferred_signals(notice=f"finishing {path}; Ctrl-C again discards it"):
        try:
            write_clip(path, frames, times, rate, sound)
            return
        except FAULTS as error:
            cause = error
        if sound is not None and not is_disk_fault(cause):
            try:
                write_clip(path, frames, times, rate)
            except FAULTS as error:
                cause = error
            else:
                raise RescueError(
                    f"{path}: is written without its sound, which cannot be kept ({cause})", path
                ) from cause
        folder = write_frames_somewhere(path, frames)
        raise RescueError(
            f"{path}: cannot be written ({cause}); the edited frames are in {folder}", folder
        ) from cause


def is_disk_fault(error: BaseException) -> bool:
    """Whether an error is the disk's, so that another attempt at the same place is in vain."""
    faults = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EDQUOT, errno.EIO)
    return getattr(error, "errno", None) in faults


def write_frames_somewhere(path: Path, frames: Iterable[np.ndarray]) -> Path:
    """Writes a folder of PNGs beside the target, or in the temporary folder; returns it."""
    for parent in (path.absolute().parent, Path.cwd(), Path(tempfile.gettempdir())):
        folder = unused_path(parent / f"{path.stem[:100]}-frames", suffix="")
        try:
            write_clip(folder, frames, [Fraction(0)], Fraction(1))
        except OSError as error:
            log.warning("%s: cannot be written (%s)", folder, error.strerror)
        else:
            return folder
    raise UserError(f"{path}: cannot be written, and there is no room for its frames anywhere")
