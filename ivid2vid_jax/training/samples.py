"""Samples on held-out clips, to look at: RUN/samples/<step>/NAME.gif side by side (source, edit, truth) and a contact sheet."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from ivid2vid_jax.data.loader import held_out_split, open_source
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline, load_tokenizer
from ivid2vid_jax.parallel.mesh import build_mesh
from ivid2vid_jax.training import init_state as starting
from ivid2vid_jax.training import pipeline_export
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.params import unflatten
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, PipelineFolder


class Samples:
    """samples(step, params, frozen) writes the pictures and returns the contact sheets' paths.

    An editor edits clips, an autoencoder reconstructs them, text to image draws their captions, CLIP has nothing to show.
    In a run of several processes the first one computes, alone.
    """

    def __init__(self, config: TrainConfig, run: Path, folder: PipelineFolder | ClipFolder):
        self.config, self.run = config, run
        self.pipe = None
        if config.task != "clip":
            self.pipe = Pipeline(
                folder,
                {},
                load_tokenizer(folder.tokenizer),
                starting.compute_dtype_of(config),
                config.optim.attention,
            )

    def __call__(self, step: int, params: dict, frozen: dict) -> list[Path]:
        if not self.pipeline(params, frozen):
            return []
        with jax.transfer_guard("allow"), single_process_mesh():
            return list(self.write(self.run / "samples" / str(step)))

    def pipeline(self, params: dict, frozen: dict) -> Pipeline | None:
        """The pipeline with these weights; None where the task has none, and in all processes but the first."""
        if self.pipe is None:
            return None
        weights = {**frozen, **params}
        with jax.transfer_guard("allow"):
            if jax.process_count() > 1:
                weights = pipeline_export.on_host(weights)
            if jax.process_index():
                return None
            self.pipe.params = unflatten(weights)
            return self.pipe

    def write(self, folder: Path) -> Iterator[Path]:
        from ivid2vid_jax.video import compare

        folder.mkdir(parents=True, exist_ok=True)
        for i, record in enumerate(self.records()):
            made = self.made(record)
            text = {
                "edit": record.instruction,
                "text_to_image": record.source_caption,
                "autoencoder": "reconstruction",
            }[self.config.task]
            yield compare.write_panels(
                folder / f"{i}.gif",
                [record.source, made] + [record.edited] * (self.config.task == "edit"),
                text,
                record.fps,
            )

    def made(self, record) -> np.ndarray:
        """[T, H, W, 3] uint8, to be seen beside the record's source clip."""
        if self.config.task == "autoencoder":
            return self.pipe.reconstruct(record.source)
        settings = EditSettings(
            steps=self.config.log.sample_steps, size=self.config.loader.size, seed=0
        )
        if self.config.task == "text_to_image":
            return self.pipe.generate(
                record.source_caption, len(record.source), settings.resolve(self.pipe.folder)
            )
        return self.pipe.edit(record.source, record.instruction, **vars(settings))

    def records(self) -> Iterator:
        """The first held-out triplets of the first dataset that has any, cut to the training length."""
        for name in self.config.data:
            try:
                source = open_source(name, self.config.loader, 0, held_out_split(name))
            except UserError:
                continue
            for i in range(min(self.config.log.samples, len(source))):
                record, n = source[i], self.config.loader.frames
                yield type(record)(
                    **{**vars(record), "source": record.source[:n], "edited": record.edited[:n]}
                )
            return


def single_process_mesh():
    """A context in which one of several processes computes by itself, on its first device: under the run's mesh its programs would be split over the
    devices of the others, which wait.
    """
    return (
        jax.set_mesh(build_mesh((1, 1, 1), jax.local_devices()[:1]))
        if jax.process_count() > 1
        else contextlib.nullcontext()
    )
