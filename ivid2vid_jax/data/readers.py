"""Readers of triplets: lists of video pairs (CSV, JSON), InstructPix2Pix folders, shapes worlds.

A reader first lists its items, which are small and can be sent to worker processes; `read` then
turns an item into a Triplet.
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.clip_pairs import ClipSettings, read_pair
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError, check_instruction

LIST_SUFFIXES = (".csv", ".jsonl", ".json")
REQUIRED = ("src_video", "tgt_video", "prompt")
OPTIONAL = ("source_caption", "edited_caption", "edit_type", "licence")


@dataclasses.dataclass(frozen=True)
class Item:
    """Where one triplet is found.

    Attributes:
        id: the triplet's.
        where: what a user would look for, a file or a row of a list.
    """

    id: str
    where: str

    @property
    def origin(self) -> str:
        """What triplets of one source clip have in common: they go into the same split."""
        return self.id


class Reader(Protocol):
    """A source of triplets; each class reads its own kind of items."""

    def items(self) -> list[Any]:
        """Lists all items in a fixed order; UserError if the list is missing or malformed."""

    def read(self, item: Any) -> Triplet:
        """Reads an item; UserError if that fails."""


def open_reader(
    data: str, root: Path | None, clips: ClipSettings, shapes_reader: "ShapesReader"
) -> Reader:
    """Returns the reader for `data`.

    Args:
        data: the name of a procedural world, a .csv, .jsonl or .json file, or an InstructPix2Pix
            folder.
        root: folder that the paths of a list are relative to; None = the list's own folder.
        clips: how clips are read.
        shapes_reader: returned for a procedural world.

    Raises:
        UserError: `data` is none of these.
    """
    if data in shapes.WORLDS:
        return shapes_reader
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return ListReader(path.resolve(), (root or path.parent).resolve(), clips)
    if (path / "seeds.json").is_file():
        return PairFolderReader(path.resolve(), clips)
    state = "is not" if path.exists() else "no such file or folder, and not"
    raise UserError(
        f"{data}: {state} one of these: a procedural world ({', '.join(shapes.WORLDS)}), "
        f"a list ({', '.join(LIST_SUFFIXES)}), or an InstructPix2Pix folder (with seeds.json)"
    )


# ---- lists ----


@dataclasses.dataclass(frozen=True)
class ListRow(Item):
    """A row of a list, its paths as written."""

    source: str
    edited: str
    instruction: str
    source_caption: str = ""
    edited_caption: str = ""
    edit_type: str = ""
    licence: str = ""

    @property
    def origin(self) -> str:
        """The source clip."""
        return self.source


@dataclasses.dataclass(frozen=True)
class ListReader:
    """A CSV or JSON list with the columns src_video, tgt_video and prompt.

    Kiwi-Edit and DiffSynth-Studio write such lists. Images are clips of one frame.

    Attributes:
        path: the list.
        root: folder that its paths are relative to.
        clips: how clips are read.
    """

    path: Path
    root: Path
    clips: ClipSettings

    def items(self) -> list[ListRow]:
        """The rows; UserError if one lacks a column or holds something else than text."""
        read_rows = read_csv if self.path.suffix.lower() == ".csv" else read_json
        rows = []
        seen: dict[str, int] = {}
        for number, cells in read_rows(self.path):
            where = f"{self.path.name} {number}"
            if missing := [name for name in REQUIRED if name not in cells]:
                raise UserError(
                    f"{self.path}: {number} has no {', '.join(missing)} "
                    f"(it has: {', '.join(map(str, cells))}); required are {', '.join(REQUIRED)}"
                )
            texts = {name: cells.get(name) or "" for name in (*REQUIRED, *OPTIONAL)}
            if wrong := [name for name, value in texts.items() if not isinstance(value, str)]:
                raise UserError(f"{self.path}: {number}: {', '.join(wrong)} must be text")
            source, edited, instruction = (texts.pop(name) for name in REQUIRED)
            id = unique_name(pair_id(source, edited, instruction), seen)
            rows.append(ListRow(id, where, source, edited, instruction, **texts))
        return rows

    def read(self, item: ListRow) -> Triplet:
        """Reads a row; UserError for an empty cell or clips that cannot be read."""
        for name, path in (("src_video", item.source), ("tgt_video", item.edited)):
            if not path.strip():
                raise UserError(f"{name} is empty")
        check_instruction(item.instruction)
        source, edited, fps = read_pair(
            self.root / item.source, self.root / item.edited, self.clips
        )
        return Triplet(
            id=item.id,
            source=source,
            edited=edited,
            instruction=item.instruction,
            source_caption=item.source_caption,
            edited_caption=item.edited_caption,
            edit_type=item.edit_type,
            fps=fps,
            mask=None,
            licence=item.licence,
            provenance=f"{item.where}: {item.source}, {item.edited}",
        )


def pair_id(source: str, edited: str, instruction: str) -> str:
    """Returns an id that is the same for the same row in any list on any machine."""
    digest = hashlib.sha256(json.dumps([source, edited, instruction]).encode()).hexdigest()
    return f"{Path(source).stem}-{digest[:12]}"


def unique_name(name: str, seen: dict[str, int]) -> str:
    """Returns the name, followed by a number from its second use on; counts uses in `seen`."""
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def read_csv(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields ("row 2", cells by column), counted as spreadsheets do: the header is row 1."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, cells in enumerate(csv.DictReader(file), 2):
                if None in cells:
                    raise UserError(
                        f"{path}: row {number} has more cells than the header: "
                        "put texts with commas in quotes"
                    )
                yield f"row {number}", cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not CSV in UTF-8 ({error})") from error


def read_json(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields ("line 1", object) of JSON lines, or ("entry 1", object) of a JSON list."""
    values: list[tuple[str, Any]]
    try:
        if path.suffix.lower() == ".json":
            values = [(f"entry {i}", value) for i, value in enumerate(read_json_list(path), 1)]
        else:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            values = [(f"line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error})") from error
    for number, text in values:
        try:
            value = json.loads(text) if isinstance(text, str) else text
        except ValueError as error:
            raise UserError(f"{path}: {number} is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: {number} is not a JSON object")
        yield number, value


def read_json_list(path: Path) -> list:
    """Reads a file with a JSON list; UserError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(value, list):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not a list")
    return value


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
