"""Stage "scores": edited clips -> CLIP scores, accepted or rejected by the filter."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property

from ivid2vid_jax.evaluation.clip_scores import clip_scorer, load_clip
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.filter import rejection_reason
from ivid2vid_jax.synthesis.fingerprints import fingerprint, hashed_settings, hashed_weights
from ivid2vid_jax.synthesis.manifest import ACCEPTED, REJECTED, Manifest, Outcome, run_pending
from ivid2vid_jax.synthesis.stages.edits import EditsStage
from ivid2vid_jax.synthesis.stages.stage import Stage
from ivid2vid_jax.synthesis.workspace import Workspace
from ivid2vid_jax.utils.progress import Progress


class ScoresStage(Stage):
    """Items: edits that were made. Fingerprint: the edit, CLIP's weights and the thresholds."""

    name = "scores"

    def __init__(self, config: SynthesisConfig, workspace: Workspace, edits: EditsStage):
        super().__init__(config, workspace)
        self.edits = edits

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Edit id -> fingerprint."""
        config = self.config.filter
        settings = hashed_settings(config) | {"keep": 1, "model": hashed_weights(config.model)}
        return {line["id"]: fingerprint(line["mark"], settings) for line in self.edits.accepted()}

    def clip_of(self, id: str) -> str:
        """All edits of a clip belong to the same shard."""
        return self.edits.clip_of(id)

    def process(self, manifest: Manifest, items: Mapping[str, str]) -> None:
        """Scores the edits and compares the scores with the thresholds."""
        config, scorer = self.config.filter, clip_scorer(load_clip(self.config.filter.model))

        def work(id: str) -> Outcome:
            edit = self.edits.edits[id]
            scores = scorer(
                self.workspace.read_clip(edit.clip),
                self.workspace.read_edit(id),
                edit.caption,
                edit.edited_caption,
            )
            facts = {
                "prompt": f"{edit.clip}: {edit.instruction}",
                "scores": dataclasses.asdict(scores),
                "model": config.model,
            }
            if reason := rejection_reason(scores, config):
                return REJECTED, facts | {"reason": reason}
            return ACCEPTED, facts

        with Progress("scores") as progress:
            run_pending(manifest, items, work, progress=progress)
