"""Runs the stages of the data engine in their order."""

from pathlib import Path

from ivid2vid_jax import assets
from ivid2vid_jax.synthesis import dataset_writer
from ivid2vid_jax.synthesis.config import STAGES, TRUTH
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.manifest import lock_stage


def run_stages(engine: Engine) -> None:
    """Runs the stages that the engine's config names; items that are done are skipped."""
    config = engine.config
    is_local = Path(config.base).expanduser().exists() or config.base in assets.MODELS
    if config.editor != TRUTH and is_local:
        _ = engine.edits.base_folder  # refuses a wrong base before anything is paid for
    with lock_stage(engine.folder, STAGES[0], engine.shard):
        for name in STAGES:
            if name not in config.stages:
                continue
            if name == "write":
                dataset_writer.write_dataset(engine)
            else:
                engine.stage(name).run()
            engine.barrier(name)
