"""Where the data engine's clips come from: videos of a folder, or the shapes world, which knows the truth of every edit."""

import dataclasses
import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import ATTRIBUTES, RADII
from ivid2vid_jax.synthesis import clip_cutting
from ivid2vid_jax.synthesis.config import OWN, SynthesisConfig
from ivid2vid_jax.synthesis.manifest import ACCEPTED, fingerprint

EDIT_KINDS = tuple(kind for kind in shapes.KINDS if kind != "identity")
ANY_SCENE_KINDS = tuple(
    kind for kind in EDIT_KINDS if kind not in ("add", "remove")
)  # edits that any scene can be asked for
ENDS = 2**16  # bytes


class Source(Protocol):
    def marks(self) -> dict[str, str]:
        """Id of each video -> its mark."""

    def make(self, id: str) -> tuple[str, dict]:
        """(status, facts) of a video: its clips, written to files, in facts["clips"], each with its id."""

    def repeats(self, lines: list[dict]) -> dict[str, str]:
        """Of the clips of accepted videos' lines: id -> the id of the one that it repeats and so is not used."""


def open_source(config: SynthesisConfig) -> Source:
    """UserError for a folder that holds no video."""
    folder = config.output / "clips"
    return (
        ShapesSource(config, folder)
        if config.videos == OWN
        else VideoSource(clip_cutting.videos(Path(config.videos)), config.clips, folder)
    )


@dataclasses.dataclass
class VideoSource:
    files: dict[str, Path]
    config: clip_cutting.ClipsConfig
    folder: Path

    @cached_property
    def digests(self) -> dict[str, str]:
        return {id: digest(file) for id, file in self.files.items()}

    def marks(self):
        return {
            id: fingerprint(dataclasses.asdict(self.config), each)
            for id, each in self.digests.items()
        }

    def make(self, id):
        return clip_cutting.cut_video(self.files[id], id, self.config, self.folder)

    def repeats(self, lines):
        return clip_cutting.near_duplicates(lines, self.config)[1]


@dataclasses.dataclass
class ShapesSource:
    """Clips of the shapes world's sequence, with the specs of several edits each."""

    config: SynthesisConfig
    folder: Path

    def marks(self):
        c = self.config
        decides = fingerprint(c.seed, c.per_clip, c.clips.size, c.clips.frames)
        return {f"shapes-{c.seed}-{index:06d}": decides for index in range(c.count)}

    def make(self, id):
        c, index = self.config, int(id.rpartition("-")[2])
        first = shapes.sample_spec(
            c.seed, index, kinds=EDIT_KINDS, size=c.clips.size, frames=c.clips.frames
        )
        specs, rng = [first], np.random.default_rng([c.seed, index, 1])
        for kind in rng.permutation([kind for kind in ANY_SCENE_KINDS if kind != first.edit.kind]):
            edit = shapes.sample_edit(rng, first.scene, str(kind))
            if kind in (*ATTRIBUTES, "background") and not edit.value:
                continue  # nothing to change to
            if kind == "size" and any(
                thing.path.box[0] < RADII["large"] for thing in first.scene.objects
            ):
                continue  # a larger one would leave the frame
            if len(specs) < c.per_clip and not shapes.held_out(first.scene, edit):
                specs.append(dataclasses.replace(first, edit=edit))
        clip_cutting.write(
            self.folder / f"{id}.npy", shapes.render(first.scene, first.size, first.frames)
        )
        return ACCEPTED, {
            "clips": [{"id": id, "specs": [each.to_json() for each in specs]}],
            "refused": [],
        }

    def repeats(self, lines):
        return {}


def digest(file: Path) -> str:
    """Tells a video from another in its place, and not from its copy, without reading all of it at every start: of its size, its first and its last bytes."""
    with open(file, "rb") as data:
        size = os.fstat(data.fileno()).st_size
        first = data.read(ENDS)
        data.seek(max(0, size - ENDS))
        return hashlib.sha256(str(size).encode() + b" " + first + data.read()).hexdigest()
