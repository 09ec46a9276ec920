"""Edits of a set of clips by a model, as folders of frames."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.data.clip_pairs import ClipSettings, common_size, open_to_read, read_fitted
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.clip_metrics import fingerprint_files
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask
from ivid2vid_jax.evaluation.options import EvaluateArgs
from ivid2vid_jax.evaluation.prepared_set import write_frames
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.progress import Progress

log = logging.getLogger(__name__)

Edit = Callable[[np.ndarray, str], np.ndarray]  # (clip, instruction) -> edited clip
EDIT_RECORD = "made.json"  # beside the frames of an edit: its instruction and source


def load_editor(args: EvaluateArgs, record: dict[str, Any]) -> Edit:
    """Loads --model as an editor, and adds its identity and settings to the record."""
    pipe = pipeline.load(args.model, args.dtype)
    settings = pipeline.EditSettings.from_args(args).resolve(pipe.folder)
    pipe.check_editor()
    record |= {
        "model": args.model or "shapes-edit",
        "model_weights": pipe.folder.fingerprint(),
        "settings": vars(settings),
    }
    return lambda clip, instruction: pipe.edit(clip, instruction, **vars(settings))


def write_edits(
    edit_clip: Edit, tasks: Sequence[EvaluationTask], folder: Path, settings: ClipSettings
) -> None:
    """Writes folder/ID/*.png for each task that has no edit of this instruction and source.

    Clips that cannot be edited are logged and skipped.
    """
    with Progress("editing", len(tasks)) as progress:
        for task in progress.wrap(tasks):
            target = folder / task.id
            try:
                source = fingerprint_files(task.source)
                record = json.dumps({"instruction": task.instruction, "source": source})
                file = target / EDIT_RECORD
                if file.is_file() and file.read_text() == record:
                    continue
                clip = open_to_read(task.source, settings)
                size = common_size([(clip.height, clip.width)], settings.size)
                edited = edit_clip(read_fitted(clip, size, settings.frames), task.instruction)
            except UserError as error:
                log.warning("%s: not edited: %s", task.id, error)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as frames:
                write_frames(frames, edited)
                (frames / EDIT_RECORD).write_text(record)
                shutil.rmtree(target, ignore_errors=True)
