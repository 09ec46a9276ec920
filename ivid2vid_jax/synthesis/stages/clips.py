"""Stage "clips": videos -> clips."""

from collections.abc import Mapping
from functools import cached_property

from ivid2vid_jax.data import shapes
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.fingerprints import fingerprint
from ivid2vid_jax.synthesis.manifest import Manifest, run_pending
from ivid2vid_jax.synthesis.sources import Source
from ivid2vid_jax.synthesis.stages.stage import Stage
from ivid2vid_jax.synthesis.workspace import Workspace
from ivid2vid_jax.utils.progress import Progress


class ClipsStage(Stage):
    """Items: videos. Fingerprint: the file (shapes world: the seed) and the clips' settings."""

    name = "clips"

    def __init__(self, config: SynthesisConfig, workspace: Workspace, source: Source):
        super().__init__(config, workspace)
        self.source = source

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Video id -> fingerprint."""
        return self.source.fingerprints()

    def process(self, manifest: Manifest, items: Mapping[str, str]) -> None:
        """Cuts or renders the clips."""
        with Progress("clips") as progress:
            run_pending(manifest, items, self.source.make, progress=progress)

    def run(self) -> None:
        """Also prints how many clips are near-duplicates, once all shards are done."""
        super().run()
        if not self.manifest().pending(self.fingerprints) and self.near_duplicates:
            duplicate, original = next(iter(self.near_duplicates.items()))
            print(
                f"  {len(self.near_duplicates)} clips are near-duplicates and are left out, "
                f"e.g. {duplicate} of {original}"
            )

    @cached_property
    def near_duplicates(self) -> dict[str, str]:
        """Id of a clip that is left out -> id of the clip that it duplicates."""
        return self.source.repeats(self.accepted())

    @cached_property
    def clips(self) -> dict[str, dict]:
        """Clip id -> facts, with "video" and "mark" (its fingerprint), without near-duplicates.

        Raises UserError if a shard has not cut all of its videos yet.
        """
        if pending := self.manifest().pending(self.fingerprints):
            raise UserError(
                f"{self.workspace.folder}: {len(pending)} of {len(self.fingerprints)} videos are "
                "still to be cut: run --stages clips first"
                + (", of every shard" if self.workspace.shard[1] > 1 else "")
            )
        return {
            clip["id"]: clip | {"video": line["id"], "mark": fingerprint(line["mark"], clip["id"])}
            for line in self.accepted()
            for clip in line["clips"]
            if clip["id"] not in self.near_duplicates
        }

    def specs(self, clip: str) -> list[shapes.Spec]:
        """The edits that a clip of the shapes world comes with."""
        return [shapes.Spec.from_json(text) for text in self.clips[clip]["specs"]]
