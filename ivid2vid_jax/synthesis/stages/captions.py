"""Stage "captions": clips -> captions."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.synthesis import captions
from ivid2vid_jax.synthesis.config import SHAPES, SynthesisConfig
from ivid2vid_jax.synthesis.fingerprints import fingerprint, hashed_settings, hashed_weights
from ivid2vid_jax.synthesis.manifest import (
    ACCEPTED,
    REJECTED,
    Manifest,
    Outcome,
    run_pending,
    run_pending_groups,
)
from ivid2vid_jax.synthesis.stages.clips import ClipsStage
from ivid2vid_jax.synthesis.stages.stage import Stage, batched
from ivid2vid_jax.synthesis.workspace import Workspace
from ivid2vid_jax.utils.progress import Progress


class CaptionsStage(Stage):
    """Items: clips. Fingerprint: the clip; BLIP's settings and weights, or the given caption."""

    name = "captions"

    def __init__(self, config: SynthesisConfig, workspace: Workspace, clips: ClipsStage):
        super().__init__(config, workspace)
        self.clips = clips

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Clip id -> fingerprint."""
        settings, clips = self.config.captions, self.clips.clips
        if settings.source == "blip":
            blip = hashed_settings(settings) | {"batch": 8, "model": hashed_weights(settings.model)}
            return {id: fingerprint(clip["mark"], blip) for id, clip in clips.items()}
        if settings.source == SHAPES:
            return {id: fingerprint(clip["mark"], SHAPES) for id, clip in clips.items()}
        return {
            id: fingerprint(clip["mark"], settings.source, self.given[id])
            for id, clip in clips.items()
        }

    @cached_property
    def given(self) -> dict[str, str | None]:
        """Clip id -> caption of the file or the shapes world; None if the file has none."""
        source, clips = self.config.captions.source, self.clips.clips
        if source == SHAPES:
            return {id: shapes.caption(self.clips.specs(id)[0].scene) for id in clips}
        known = captions.from_file(Path(source))
        return {id: captions.of_clip(known, id, clip["video"]) for id, clip in clips.items()}

    def process(self, manifest: Manifest, items: Mapping[str, str]) -> None:
        """Captions the middle frames by BLIP, or looks up the given captions."""
        settings = self.config.captions
        if settings.source != "blip":
            run_pending(manifest, items, self.look_up)
            return
        blip = captions.Blip(settings)
        with Progress("captions", len(manifest.pending(items))) as progress:

            def work(ids: list[str]) -> list[Outcome]:
                texts = blip([middle_frame(self.workspace.read_clip(id)) for id in ids])
                progress.bar.update(len(ids))
                return [
                    (ACCEPTED, {"caption": text, "model": settings.model})
                    if text
                    else (REJECTED, {"reason": "BLIP says nothing"})
                    for text in texts
                ]

            run_pending_groups(manifest, items, batched(sorted(items), settings.batch), work)

    def look_up(self, id: str) -> Outcome:
        """The given caption of a clip."""
        if caption := self.given[id]:
            return ACCEPTED, {"caption": caption, "model": self.config.captions.source}
        return REJECTED, {"reason": "the file has no caption of it"}

    @cached_property
    def captions(self) -> dict[str, str]:
        """Clip id -> accepted caption."""
        return {line["id"]: line["caption"] for line in self.accepted()}


def middle_frame(clip: np.ndarray) -> np.ndarray:
    """[H, W, 3]."""
    return clip[len(clip) // 2]
