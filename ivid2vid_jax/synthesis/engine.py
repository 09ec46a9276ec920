"""The data engine: videos -> clips -> captions -> instructions -> edits -> scores -> dataset.

Every stage can be run alone and continues where it was stopped: it processes the items that are new
or whose inputs or settings have changed, by their fingerprints (`stages/stage.py`, `manifest.py`).

With several shards, each process does its own items of a stage. All shards must finish "clips"
before any of them starts the next stage, and all stages before shard 0 starts "write".
"""

from pathlib import Path

from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.sources import open_clip_source
from ivid2vid_jax.synthesis.stages.captions import CaptionsStage
from ivid2vid_jax.synthesis.stages.clips import ClipsStage
from ivid2vid_jax.synthesis.stages.edits import EditsStage
from ivid2vid_jax.synthesis.stages.instructions import InstructionsStage
from ivid2vid_jax.synthesis.stages.scores import ScoresStage
from ivid2vid_jax.synthesis.stages.stage import Stage
from ivid2vid_jax.synthesis.workspace import Workspace


class Engine:
    """The stages of a config over its output folder.

    Items and results are cached: they show the folder as it was when they were first asked for.
    """

    def __init__(self, config: SynthesisConfig):
        """Raises UserError for a bad config, a source without videos, or another output folder."""
        config.check()
        self.config = config
        self.workspace = work = Workspace(Path(config.output), config.shard_part())
        source = open_clip_source(config)
        work.check()
        self.clips = ClipsStage(config, work, source)
        self.captions = CaptionsStage(config, work, self.clips)
        self.instructions = InstructionsStage(config, work, self.clips, self.captions)
        self.edits = EditsStage(config, work, self.clips, self.instructions)
        self.scores = ScoresStage(config, work, self.edits)

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.workspace.folder

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count) of this process."""
        return self.workspace.shard

    def stage(self, name: str) -> Stage:
        """The stage of a name in STAGES, but for "write" (`dataset_writer.py`)."""
        return getattr(self, name)

    def barrier(self, stage: str) -> None:
        """Waits for the other processes of --shard auto, whose results the next stage may need."""
        if self.config.shard == "auto" and self.shard[1] > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"ivid2vid_jax.synthesis.{stage}")
