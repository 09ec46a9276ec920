"""Runs the stages of the data engine in their order."""

from pathlib import Path

from ivid2vid_jax import assets
from ivid2vid_jax.synthesis import dataset_writer
from ivid2vid_jax.synthesis.config import STAGES, TRUTH
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.manifest import lock_stage


def run_stages(engine: Engine) -> None:
    """The stages that the engine's config names; stages that are done are passed over."""
    config = engine.config
    if config.editor != TRUTH and (
        Path(config.base).expanduser().exists() or config.base in assets.MODELS
    ):
        _ = engine.base_folder  # what it refuses is refused before anything is paid for, unless it would have to be fetched
    with lock_stage(engine.folder, "clips", engine.shard):
        for stage in STAGES:
            if stage in config.stages:
                dataset_writer.write_dataset(engine) if stage == "write" else getattr(
                    engine, stage
                )()
                engine.barrier(stage)
