"""Samples on held-out clips in RUN/samples/<step>: source, result and target side by side."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ivid2vid_jax.data.sources import held_out_split, open_source
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline
from ivid2vid_jax.parallel.mesh import build_mesh
from ivid2vid_jax.training import init_state, pipeline_export
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.params import unflatten
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, PipelineFolder
from ivid2vid_jax.weights.tokenizer import load_tokenizer


class Samples:
    """samples(step, params, frozen) writes NAME.gif and a contact sheet per clip.

    An editor edits clips, an autoencoder reconstructs them, text to image generates their captions,
    CLIP has no samples. Of several processes only the first one samples.
    """

    def __init__(self, config: TrainConfig, run: Path, folder: PipelineFolder | ClipFolder):
        """folder: the networks' configs."""
        self.config, self.run = config, run
        self.pipe: Pipeline | None = None
        if isinstance(folder, PipelineFolder):
            self.pipe = Pipeline(
                folder,
                {},
                load_tokenizer(folder.tokenizer),
                init_state.compute_dtype_of(config),
                config.optim.attention,
            )

    def __call__(self, step: int, params: dict, frozen: dict) -> list[Path]:
        """Writes the samples of a step. Returns the contact sheets' paths."""
        pipe = self.pipeline(params, frozen)
        if pipe is None:
            return []
        with jax.transfer_guard("allow"), single_process_mesh():
            return list(self.write(pipe, self.run / "samples" / str(step)))

    def pipeline(self, params: dict, frozen: dict) -> Pipeline | None:
        """The pipeline with these weights; None for CLIP and in all processes but the first."""
        if self.pipe is None:
            return None
        weights: dict[str, Any] = {**frozen, **params}
        with jax.transfer_guard("allow"):
            if jax.process_count() > 1:
                weights = pipeline_export.on_host(weights)
            if jax.process_index():
                return None
            self.pipe.params = unflatten(weights)
            return self.pipe

    def write(self, pipe: Pipeline, folder: Path) -> Iterator[Path]:
        """Writes 0.gif, 1.gif, ... and their contact sheets; yields the sheets' paths."""
        from ivid2vid_jax.video import compare

        folder.mkdir(parents=True, exist_ok=True)
        for i, record in enumerate(self.records()):
            clips = [record.source, self.sample(pipe, record)]
            if self.config.task == "edit":
                clips.append(record.edited)
            title = {
                "edit": record.instruction,
                "text_to_image": record.source_caption,
                "autoencoder": "reconstruction",
            }[self.config.task]
            yield compare.write_panels(folder / f"{i}.gif", clips, title, record.fps)

    def sample(self, pipe: Pipeline, record: Triplet) -> np.ndarray:
        """The model's result for a record, [T, H, W, 3] uint8."""
        if self.config.task == "autoencoder":
            return pipe.reconstruct(record.source)
        settings = EditSettings(
            steps=self.config.log.sample_steps, size=self.config.loader.size, seed=0
        )
        if self.config.task == "text_to_image":
            return pipe.generate(
                record.source_caption, len(record.source), settings.resolve(pipe.folder)
            )
        return pipe.edit(record.source, record.instruction, **vars(settings))

    def records(self) -> Iterator[Triplet]:
        """The first held-out triplets, cut to the training length.

        Of the first dataset that has any.
        """
        for name in self.config.data:
            try:
                source = open_source(name, self.config.loader, 0, held_out_split(name))
            except UserError:
                continue
            frames = self.config.loader.frames
            for i in range(min(self.config.log.samples, len(source))):
                record = source[i]
                yield dataclasses.replace(
                    record, source=record.source[:frames], edited=record.edited[:frames]
                )
            return


def single_process_mesh() -> contextlib.AbstractContextManager:
    """A context in which one of several processes computes alone, on its first device.

    Under the run's mesh its programs would also need the other processes' devices.
    """
    return (
        jax.set_mesh(build_mesh((1, 1, 1), jax.local_devices()[:1]))
        if jax.process_count() > 1
        else contextlib.nullcontext()
    )
