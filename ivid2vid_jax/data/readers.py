"""Readers of triplets: lists of video pairs (CSV, JSON), InstructPix2Pix folders, shapes worlds.

A reader first lists its items, which are small and can be sent to worker processes; `read` then
turns an item into a Triplet.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.clip_pairs import ClipSettings, read_pair
from ivid2vid_jax.data.items import Item
from ivid2vid_jax.data.lists import (
    LIST_SUFFIXES,
    METADATA_FILES,
    ListReader,
    ParquetReader,
    parse_columns,
    read_json_list,
)
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError, check_instruction


class Reader(Protocol):
    """A source of triplets; each class reads its own kind of items."""

    def items(self) -> list[Any]:
        """Lists all items in a fixed order; UserError if the list is missing or malformed."""

    def read(self, item: Any) -> Triplet:
        """Reads an item; UserError if that fails."""


def open_reader(
    data: str,
    root: Path | None,
    clips: ClipSettings,
    shapes_reader: "ShapesReader",
    columns: tuple[str, ...] = (),
) -> Reader:
    """Returns the reader for `data`.

    Args:
        data: the name of a procedural world, a list (.csv, .tsv, .jsonl, .json, .parquet), a folder
            with metadata.jsonl or metadata.csv, or an InstructPix2Pix folder.
        root: folder that the paths of a list are relative to; None = the list's own folder.
        clips: how clips are read.
        shapes_reader: returned for a procedural world.
        columns: column names of a list, such as "src=original_image".

    Raises:
        UserError: `data` is none of these.
    """
    if data in shapes.WORLDS:
        return shapes_reader
    path = Path(data).expanduser()
    for name in METADATA_FILES:  # as Hugging Face's image and video folders have it
        if (path / name).is_file():
            path = path / name
            break
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        names = parse_columns(columns)
        if path.suffix.lower() == ".parquet":
            return ParquetReader(path.resolve(), clips, names)
        return ListReader(path.resolve(), (root or path.parent).resolve(), clips, names)
    if (path / "seeds.json").is_file():
        return PairFolderReader(path.resolve(), clips)
    lists = [file for file in path.glob("*") if file.suffix.lower() in LIST_SUFFIXES]
    if len(lists) == 1:
        raise UserError(f"{data}: is a folder with one list; name it: --data {lists[0]}")
    state = "is not" if path.exists() else "no such file or folder, and not"
    raise UserError(
        f"{data}: {state} one of these: a procedural world ({', '.join(shapes.WORLDS)}), "
        f"a list ({', '.join(LIST_SUFFIXES)}), a folder with {' or '.join(METADATA_FILES)}, or an "
        "InstructPix2Pix folder (with seeds.json)"
    )


# ---- InstructPix2Pix folders ----


@dataclasses.dataclass(frozen=True)
class ImagePair(Item):
    """One seed of a prompt's folder."""

    folder: str
    seed: str

    @property
    def origin(self) -> str:
        """The prompt's folder."""
        return self.folder


@dataclasses.dataclass(frozen=True)
class PairFolderReader:
    """The image pairs of InstructPix2Pix, as clips of one frame.

    Layout: <name>/{prompt.json, <seed>_0.jpg, <seed>_1.jpg}, and seeds.json, which lists
    [[name, [seed, ...]], ...]. The source caption is `input` or `caption` in prompt.json: the
    published sets use either.
    """

    path: Path
    clips: ClipSettings

    def items(self) -> list[ImagePair]:
        """The pairs that seeds.json lists."""
        items, index = [], self.path / "seeds.json"
        for number, entry in enumerate(read_json_list(index), 1):
            match entry:
                case [str(name), list(seeds)]:
                    items += [
                        ImagePair(f"{name}/{seed}", f"{name}/{seed}_0.jpg", name, str(seed))
                        for seed in seeds
                    ]
                case _:
                    raise UserError(f"{index}: entry {number} is not [name, [seeds]]")
        return items

    def read(self, item: ImagePair) -> Triplet:
        """Reads a pair; UserError if an image or the prompt cannot be read."""
        folder = self.path / item.folder
        prompt = self.read_prompt(folder / "prompt.json")
        source, edited, fps = read_pair(
            folder / f"{item.seed}_0.jpg", folder / f"{item.seed}_1.jpg", self.clips
        )
        return Triplet(
            id=item.id,
            source=source,
            edited=edited,
            instruction=prompt["edit"],
            source_caption=prompt.get("input", prompt.get("caption", "")),
            edited_caption=prompt.get("output", ""),
            edit_type="",
            fps=fps,
            mask=None,
            licence="",
            provenance=f"{self.path.name}/{item.where}",
        )

    def read_prompt(self, path: Path) -> dict:
        """A prompt.json; UserError if it cannot be read or has no instruction."""
        try:
            prompt = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON ({error})") from error
        if not isinstance(prompt, dict) or "edit" not in prompt:
            raise UserError(f"{path}: has no 'edit'")
        check_instruction(prompt["edit"])
        return prompt


# ---- shapes worlds ----


@dataclasses.dataclass(frozen=True)
class ShapesItem(Item):
    """One triplet of a shapes world's sequence."""

    index: int


@dataclasses.dataclass(frozen=True)
class ShapesReader:
    """The first `count` triplets of a seed's sequence; for the fields see `shapes.sample_spec`."""

    count: int
    seed: int = 0
    split: str = "train"
    kinds: tuple[str, ...] = ()  # () = all kinds of the world
    size: int = 64
    frames: int = 8
    world: str = "shapes"

    def items(self) -> list[ShapesItem]:
        """The triplets' indices; UserError for wrong fields."""
        self.spec(0)  # wrong fields are wrong for every index
        fields = (self.seed, self.split, self.kinds, self.size, self.frames, self.world)
        sequence = hashlib.sha256(repr(fields).encode()).hexdigest()[:8]
        return [
            ShapesItem(f"shapes-{sequence}-{index}", f"{self.world} {index}", index)
            for index in range(self.count)
        ]

    def read(self, item: ShapesItem) -> Triplet:
        """Renders a triplet."""
        return dataclasses.replace(shapes.triplet(self.spec(item.index)), id=item.id)

    def spec(self, index: int) -> shapes.Spec:
        """The spec of a triplet."""
        return shapes.sample_spec(
            self.seed, index, self.split, self.kinds, self.size, self.frames, self.world
        )
