"""The output folder of a data-engine run: manifests, clips and edits."""

import dataclasses
from pathlib import Path

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.manifest import Manifest, in_shard
from ivid2vid_jax.utils.atomic import atomic_path


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A run's folder, as seen by the process of one shard (index, count)."""

    folder: Path
    shard: tuple[int, int]

    def check(self) -> None:
        """Raises UserError if the folder holds files that no run of the data engine has made."""
        if (
            self.folder.exists()
            and any(self.folder.iterdir())
            and not (self.folder / "clips.jsonl").is_file()
            and not any(self.folder.glob("clips-*.jsonl"))
        ):
            raise UserError(
                f"--output {self.folder}: holds other things and was not made by this command; "
                "name a new folder"
            )

    def manifest(self, stage: str) -> Manifest:
        """The manifest of a stage as it is on disk now."""
        return Manifest(self.folder, stage, self.shard)

    def in_shard(self, clip: str) -> bool:
        """Whether a video or clip is this shard's."""
        return in_shard(clip, self.shard)

    def read_clip(self, id: str) -> np.ndarray:
        """[T, H, W, 3] uint8."""
        return np.load(self.folder / "clips" / f"{id}.npy")

    def read_edit(self, id: str) -> np.ndarray:
        """The edited clip, [T, H, W, 3] uint8."""
        return np.load(self.folder / "edits" / f"{id}.npy")

    def write_edit(self, id: str, clip: np.ndarray) -> None:
        """Stores an edited clip."""
        write_array(self.folder / "edits" / f"{id}.npy", clip)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
