"""What can be given as a clip in Python: paths, arrays, tensors, lists of images."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.progress import Progress

if TYPE_CHECKING:
    from ivid2vid_jax.video.read import Clip

DEFAULT_RATE = Fraction(8)  # of arrays and images, in frames per second


@dataclasses.dataclass(eq=False)
class ClipSource:
    """Frames to edit.

    Attributes:
        size: (height, width).
        frames: frames((h, w)) yields [H, W, 3] or [h, w, 3] uint8; called once. A file is decoded
            at the smaller size, an array stays as it is.
        rate: frames per second.
        times: of the frames in seconds; those of a file are known once it has been read.
        file: the clip on disk, for its sound; None for arrays.
    """

    size: tuple[int, int]
    frames: Callable[[tuple[int, int]], Iterable[np.ndarray]]
    rate: Fraction
    times: list[Fraction]
    file: "Clip | None" = None

    def counted(self, size: tuple[int, int], sampling: Progress | None) -> Iterator[np.ndarray]:
        """The frames; the bar of the sampling that follows then says that it compiles."""
        yield from self.frames(size)
        if sampling:
            sampling.expect_compilation()


def as_source(video: Any, fps: float | None = None) -> ClipSource:
    """The frames of a clip.

    Args:
        video: a path, a list of PIL images, or an array or torch tensor: uint8 [T, H, W, 3] or
            [T, 3, H, W], or float in [0, 1] of either shape.
        fps: frame rate of a clip without one; of a file: resamples it.

    Raises:
        UserError: a file that cannot be read, or an array of a wrong shape or dtype.
        TypeError: another type.
    """
    if isinstance(video, str | Path):
        return file_source(video, fps)
    frames = as_array(video)
    rate = Fraction(fps).limit_denominator(1001) if fps else DEFAULT_RATE
    times = [i / rate for i in range(len(frames))]
    return ClipSource(frames.shape[1:3], lambda size: frames, rate, times)


def file_source(path: str | Path, fps: float | None) -> ClipSource:
    """The frames of a file or a folder of frames."""
    # imported here, so that arrays can be edited where PyAV is not installed
    from ivid2vid_jax import assets
    from ivid2vid_jax.video.frame_size import FrameLimit
    from ivid2vid_jax.video.read import open_clip

    clip = open_clip(assets.clip(Path(path)), fps=fps, limit=FrameLimit())
    times: list[Fraction] = []

    def frames(size: tuple[int, int]) -> Iterator[np.ndarray]:
        for frame in clip.frames(size):
            times.append(frame.time)
            yield frame.pixels

    return ClipSource((clip.height, clip.width), frames, clip.fps or clip.rate, times, clip)


def as_array(video: Any) -> np.ndarray:
    """uint8 [T, H, W, 3] of an array, a tensor or a list of images."""
    if isinstance(video, list | tuple) and video and hasattr(video[0], "convert"):  # PIL
        sizes = {image.size for image in video}
        if len(sizes) > 1:
            raise UserError(f"the images of a clip must have one size, got {sorted(sizes)}")
        return np.stack([np.asarray(image.convert("RGB")) for image in video])
    if hasattr(video, "detach"):  # a torch tensor
        video = video.detach().cpu().float() if video.is_floating_point() else video.cpu()
        video = video.numpy()
    if isinstance(video, list | tuple):
        video = np.stack([np.asarray(frame) for frame in video]) if video else np.zeros(0)
    if not hasattr(video, "__array__"):
        raise TypeError(
            f"a clip must be a path, a list of PIL images, an array or a tensor, not "
            f"{type(video).__name__}"
        )
    array = np.asarray(video)
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise UserError(
            f"a clip must be [T, H, W, 3] or [T, 3, H, W] with T >= 1, got {list(array.shape)}"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"a clip must be uint8 or float in [0, 1], got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise UserError(f"a clip of floats must be in [0, 1], got [{low:g}, {high:g}]")
    return np.round(255 * array).astype(np.uint8)
