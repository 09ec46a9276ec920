"""What all stages share: items with fingerprints, and the processing of pending ones."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.manifest import FAILED, REJECTED, Manifest
from ivid2vid_jax.synthesis.workspace import Workspace

T = TypeVar("T")
MAX_REASONS = 3  # printed per stage


class Stage(ABC):
    """One stage of the engine.

    A subclass defines the items (`fingerprints`) and the work on them (`process`). The fingerprint
    of an item is a hash of the fingerprints of what it is made from and of the stage's settings.
    Batch sizes are in no fingerprint: they change no caption, and an edit by at most one grey level
    (tests/synthesis/test_captions.py, test_editors.py).
    """

    name: ClassVar[str]

    def __init__(self, config: SynthesisConfig, workspace: Workspace):
        self.config, self.workspace = config, workspace

    @property
    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]:
        """Item id -> fingerprint, of all shards, as far as the earlier stages have results."""

    @abstractmethod
    def process(self, manifest: Manifest, items: Mapping[str, str]) -> None:
        """Processes the pending ones of these items (id -> fingerprint)."""

    def clip_of(self, id: str) -> str:
        """The video or clip that decides to which shard an item belongs."""
        return id

    def shard_items(self) -> dict[str, str]:
        """Id -> fingerprint of this shard's items."""
        return {
            id: fingerprint
            for id, fingerprint in self.fingerprints.items()
            if self.workspace.in_shard(self.clip_of(id))
        }

    def manifest(self) -> Manifest:
        """This stage's manifest as it is on disk now."""
        return self.workspace.manifest(self.name)

    def accepted(self) -> list[dict]:
        """Manifest lines of the accepted items."""
        return self.manifest().accepted(self.fingerprints)

    def run(self) -> None:
        """Processes this shard's pending items and prints the counts of all shards."""
        manifest, items = self.manifest(), self.shard_items()
        if manifest.pending(items):
            self.process(manifest, items)
        self.report()

    def report(self) -> None:
        """Prints how many items have which status, and the most frequent reasons."""
        manifest, total = self.manifest(), len(self.fingerprints)
        accepted = len(manifest.accepted(self.fingerprints))
        reasons = manifest.reasons(self.fingerprints)
        rejected, failed = (
            manifest.count(self.fingerprints, status) for status in (REJECTED, FAILED)
        )
        print(
            f"{self.name}: {accepted} accepted, {rejected} rejected, {failed} failed, "
            f"{total - accepted - rejected - failed} to do; {manifest.file.name}"
        )
        for reason, count in itertools.islice(reasons.items(), MAX_REASONS):
            print(f"  {count} {reason[:150]}")


def batched(items: Sequence[T], size: int) -> list[list[T]]:
    """Consecutive groups of `size` items; the last one may be smaller (Python 3.12 has its own)."""
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
