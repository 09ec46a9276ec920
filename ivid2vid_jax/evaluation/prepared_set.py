"""A dataset of `prepare` as a set of clips: edits of its held-out rows, with their true edits."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ivid2vid_jax.data.dataset import Dataset, from_record, open_dataset
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.clip_metrics import fingerprint_files
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask, check_id
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.progress import Progress


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """The rows of a split, and where their clips are written as folders of PNGs.

    Attributes:
        dataset: the split.
        folder: FOLDER/source/ID, FOLDER/target/ID and FOLDER/mask/ID hold a row's frames.
    """

    dataset: Dataset
    folder: Path

    def tasks(self) -> list[EvaluationTask]:
        """A task per row; no clip is decoded."""
        return [self.task(self.dataset.record(i)) for i in range(len(self.dataset))]

    def task(self, record: dict[str, Any]) -> EvaluationTask:
        """The task of a row."""
        texts = {
            name: record[name].decode() if isinstance(record[name], bytes) else str(record[name])
            for name in ("id", "instruction", "source_caption", "edited_caption", "edit_type")
        }
        id = check_id(texts["id"], str(self.dataset.path))
        return EvaluationTask(
            **texts,
            source=self.folder / "source" / id,
            mask=self.folder / "mask" / id if record["mask"] else None,
            target=self.folder / "target" / id,
            where=f"{self.dataset.path}, split {self.dataset.split}",
        )

    def write_clips(self) -> None:
        """Writes the clips that are not there yet; UserError for a damaged row."""
        with Progress("unpacking") as progress:
            for i in progress.wrap(range(len(self.dataset))):
                record = self.dataset.record(i)
                task = self.task(record)
                assert task.target
                if task.target.is_dir():  # written last
                    continue
                triplet = from_record(record)
                if task.mask and triplet.mask is not None:
                    write_frames(task.mask, 255 * triplet.mask.astype(np.uint8))
                write_frames(task.source, triplet.source)
                write_frames(task.target, triplet.edited)


def is_prepared(data: str) -> bool:
    """Whether --data names a folder of `prepare`."""
    return (Path(data).expanduser() / "dataset_info.json").is_file()


def open_prepared(data: str, split: str, output: Path) -> PreparedSet:
    """Opens a split; its clips belong into a folder of `output`, another one if the data changes.

    Raises:
        UserError: there is no such split, it is empty, or it is not a dataset of triplets.
    """
    path = Path(data).expanduser()
    way_out = "prepare with a larger --validation, or name another --split, such as train"
    try:
        dataset = open_dataset(path, split)
    except UserError as error:
        raise UserError(f"{error}; {way_out}") from error
    if not len(dataset):
        raise UserError(f"{path}: its split {split!r} holds no triplet; {way_out}")
    files = (file for file in path.iterdir() if file.is_file())
    return PreparedSet(dataset, output / f"clips-{fingerprint_files(*sorted(files))}")


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Writes frames, uint8 [T, H, W, 3] or [T, H, W], to FOLDER/00000.png and so on."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder, replace=True) as target:
        target.mkdir()
        for i, pixels in enumerate(frames):
            Image.fromarray(pixels).save(target / f"{i:05d}.png")
