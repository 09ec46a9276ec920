"""Where the data engine's clips come from: a folder of videos, or the shapes world."""

import dataclasses
import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import ATTRIBUTES, RADII, Edit, Scene
from ivid2vid_jax.synthesis import clip_cutting
from ivid2vid_jax.synthesis.config import SHAPES, SynthesisConfig
from ivid2vid_jax.synthesis.fingerprints import fingerprint, hashed_settings
from ivid2vid_jax.synthesis.manifest import ACCEPTED, Outcome
from ivid2vid_jax.synthesis.workspace import write_array

EDIT_KINDS = tuple(kind for kind in shapes.KINDS if kind != "identity")
# kinds of edits that are possible in every scene
ANY_SCENE_KINDS = tuple(kind for kind in EDIT_KINDS if kind not in ("add", "remove"))
DIGEST_BYTES = 2**16  # that are read at either end of a video


class Source(Protocol):
    """Videos that can be cut into clips."""

    def fingerprints(self) -> dict[str, str]:
        """Video id -> fingerprint."""

    def make(self, id: str) -> Outcome:
        """Writes the clips of a video; they are listed, with their ids, in facts["clips"]."""

    def repeats(self, lines: list[dict]) -> dict[str, str]:
        """Clip id -> id of the clip it duplicates, from the manifest lines of accepted videos."""


def open_clip_source(config: SynthesisConfig) -> Source:
    """The source that --videos names. Raises UserError for a folder that holds no video."""
    folder = config.output / "clips"
    if config.videos == SHAPES:
        return ShapesSource(config, folder)
    return VideoSource(clip_cutting.videos(Path(config.videos)), config.clips, folder)


@dataclasses.dataclass
class VideoSource:
    """Video files (id -> path), cut into clips in `folder`."""

    files: dict[str, Path]
    config: clip_cutting.ClipsConfig
    folder: Path

    @cached_property
    def digests(self) -> dict[str, str]:
        """Video id -> digest of its file."""
        return {id: digest(file) for id, file in self.files.items()}

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints: of the config and the file."""
        settings = hashed_settings(self.config)
        return {id: fingerprint(settings, digest) for id, digest in self.digests.items()}

    def make(self, id: str) -> Outcome:
        """Cuts a video."""
        return clip_cutting.cut_video(self.files[id], id, self.config, self.folder)

    def repeats(self, lines: list[dict]) -> dict[str, str]:
        """Near-duplicates by perceptual hash."""
        return clip_cutting.near_duplicates(lines, self.config)[1]


@dataclasses.dataclass
class ShapesSource:
    """Clips of the shapes world, with the specs of several edits each."""

    config: SynthesisConfig
    folder: Path

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints: all clips share the settings that decide them; the id tells them apart."""
        config = self.config
        shared = fingerprint(config.seed, config.per_clip, config.clips.size, config.clips.frames)
        return {f"shapes-{config.seed}-{index:06d}": shared for index in range(config.count)}

    def make(self, id: str) -> Outcome:
        """Renders a clip and samples edits of its scene, each of another kind."""
        config, index = self.config, int(id.rpartition("-")[2])
        first = shapes.sample_spec(
            config.seed, index, kinds=EDIT_KINDS, size=config.clips.size, frames=config.clips.frames
        )
        specs, rng = [first], np.random.default_rng([config.seed, index, 1])
        for kind in rng.permutation([kind for kind in ANY_SCENE_KINDS if kind != first.edit.kind]):
            edit = shapes.sample_edit(rng, first.scene, str(kind))
            if (
                is_possible(edit, first.scene)
                and len(specs) < config.per_clip
                and not shapes.held_out(first.scene, edit)
            ):
                specs.append(dataclasses.replace(first, edit=edit))
        write_array(self.folder / f"{id}.npy", shapes.render(first.scene, first.size, first.frames))
        clip = {"id": id, "specs": [spec.to_json() for spec in specs]}
        return ACCEPTED, {"clips": [clip], "refused": []}

    def repeats(self, lines: list[dict]) -> dict[str, str]:
        """None: every index is another scene."""
        return {}


def is_possible(edit: Edit, scene: Scene) -> bool:
    """Whether a sampled edit changes the scene and leaves all objects inside the frame."""
    if edit.kind in (*ATTRIBUTES, "background") and not edit.value:
        return False  # no other value
    too_close = any(thing.path.box[0] < RADII["large"] for thing in scene.objects)
    return not (edit.kind == "size" and too_close)


def digest(file: Path) -> str:
    """SHA-256 of a file's size and its first and last DIGEST_BYTES bytes; cheap for any size."""
    with file.open("rb") as data:
        size = os.fstat(data.fileno()).st_size
        head = data.read(DIGEST_BYTES)
        data.seek(max(0, size - DIGEST_BYTES))
        return hashlib.sha256(str(size).encode() + b" " + head + data.read()).hexdigest()
