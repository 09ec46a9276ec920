"""The result of an edit in Python."""

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ivid2vid_jax.video.read import Clip


@dataclasses.dataclass(repr=False, eq=False)
class EditResult:
    """An edited clip.

    Attributes:
        edited: frames [H, W, 3] uint8; each iteration decodes them.
        times: of the frames in seconds.
        rate: frames per second.
        source: the clip on disk, for its sound; None for arrays.
    """

    edited: Iterable[np.ndarray]
    times: list[Fraction]
    rate: Fraction
    source: "Clip | None" = None

    @cached_property
    def frames(self) -> np.ndarray:
        """All frames, uint8 [T, H, W, 3]."""
        return np.stack(list(self.edited))

    @property
    def images(self) -> list[Any]:
        """The frames as PIL images."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.frames]

    def save(self, path: str | Path) -> Path:
        """Writes the clip, with the source's sound if the format holds sound; returns the path.

        Formats: .mp4, .webm, .mov, .mkv, .gif, .webp, .png for a still image, or a new folder for
        frames. Raises UserError for a path that cannot be written.
        """
        from ivid2vid_jax.video.rescue import write_clip_safely
        from ivid2vid_jax.video.write import check_output, plan_sound

        path = Path(path)
        check_output(path)
        sound = plan_sound(path, self.source) if self.source else None
        write_clip_safely(path, self.frames, self.times, self.rate, sound)
        return path

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.frames, dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        sound = ", with sound" if self.source and self.source.has_audio else ""
        return f"EditResult({len(self)} frames, {float(self.rate):g} frames/s{sound})"


def save_video(frames: Any, path: str | Path, fps: float = 8.0) -> Path:
    """Writes frames to a file; returns its path.

    Args:
        frames: an array, a tensor or a list of PIL images, as for `Pipeline.__call__`.
        path: see `EditResult.save`.
        fps: frames per second.
    """
    from ivid2vid_jax.inference.clip_source import as_source

    clip = as_source(frames, fps)
    return EditResult(clip.frames(clip.size), clip.times, clip.rate).save(path)
