"""Others' triplets: lists of video pairs (CSV, JSON lines), InstructPix2Pix folders, and the shapes world.

A reader first lists its items, which are small and travel to worker processes, and turns one into a Triplet later.
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.utils.errors import UserError, check_instruction

LISTS = (".csv", ".jsonl", ".json")
WANTED = ("src_video", "tgt_video", "prompt")
OPTIONAL = ("source_caption", "edited_caption", "edit_type", "licence")
LENGTHS = 0.1  # clips of a pair are cut to the shorter one when they differ by no more than this share; also the limit for rates
ASPECTS = 0.03  # 832x480 beside 1280x720, which differ by 2.5%, is a usual pair


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How clips are brought in. size: pixels of the shorter side, never enlarged. fps: resample to it. frames: take the first so many."""

    size: int = 256
    fps: float | None = None
    frames: int | None = None


@dataclasses.dataclass(frozen=True)
class Item:
    """Where one triplet is. id: the triplet's. where: what a user would look for, a file or a row of one."""

    id: str
    where: str

    @property
    def origin(self) -> str:
        """What triplets of one source share: they go into the same split."""
        return self.id


class Reader(Protocol):
    def items(self) -> list[Item]:
        """All items, in a fixed order; UserError where there is no such list or it is malformed."""

    def read(self, item: Item) -> Triplet:
        """One item's triplet; UserError where it cannot be had."""


def open_reader(data: str, root: Path | None, clips: ClipSettings, world: "ShapesReader") -> Reader:
    """The reader for `data`: the name of a procedural world, a .csv, .jsonl or .json file, or an InstructPix2Pix folder; UserError for anything else."""
    if data in shapes.WORLDS:
        return world
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() in LISTS:
        return ListReader(path.resolve(), (root or path.parent).resolve(), clips)
    if (path / "seeds.json").is_file():
        return PairFolderReader(path.resolve(), clips)
    kinds = f"a procedural world ({', '.join(shapes.WORLDS)}), a list ({', '.join(LISTS)}), or an InstructPix2Pix folder (with seeds.json)"
    raise UserError(
        f"{data}: {'is not' if path.exists() else 'no such file or folder, and not'} one of these: {kinds}"
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
        return self.source


@dataclasses.dataclass(frozen=True)
class ListReader:
    """A CSV or JSON list with src_video, tgt_video and prompt, as Kiwi-Edit and DiffSynth-Studio write them; images are one-frame clips.

    root: the folder that the list's paths start from.
    """

    path: Path
    root: Path
    clips: ClipSettings

    def items(self) -> list[ListRow]:
        read = read_csv if self.path.suffix.lower() == ".csv" else read_json
        rows, seen = [], {}
        for number, cells in read(self.path):
            where = f"{self.path.name} {number}"
            missing = [name for name in WANTED if name not in cells]
            if missing:
                held = ", ".join(map(str, cells))
                raise UserError(
                    f"{self.path}: {number} has no {', '.join(missing)} (it has: {held}); needed are {', '.join(WANTED)}"
                )
            texts = {name: cells.get(name) or "" for name in (*WANTED, *OPTIONAL)}
            wrong = [name for name, value in texts.items() if not isinstance(value, str)]
            if wrong:
                raise UserError(f"{self.path}: {number}: {', '.join(wrong)} must be text")
            first = [texts.pop(name) for name in WANTED]
            rows.append(ListRow(unique(pair_id(*first), seen), where, *first, **texts))
        return rows

    def read(self, item: ListRow) -> Triplet:
        for name, path in (("src_video", item.source), ("tgt_video", item.edited)):
            if not path.strip():
                raise UserError(f"{name} is empty")
        check_instruction(item.instruction)
        source, edited, fps = read_pair(
            self.root / item.source, self.root / item.edited, self.clips
        )
        words = (item.instruction, item.source_caption, item.edited_caption, item.edit_type)
        return Triplet(
            item.id,
            source,
            edited,
            *words,
            fps,
            None,
            item.licence,
            f"{item.where}: {item.source}, {item.edited}",
        )


def pair_id(source: str, edited: str, instruction: str) -> str:
    """The same for the same row in any list on any machine."""
    return f"{Path(source).stem}-{hashlib.sha256(json.dumps([source, edited, instruction]).encode()).hexdigest()[:12]}"


def unique(name: str, seen: dict[str, int]) -> str:
    """The name, with a number from its second use on."""
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def read_csv(path: Path) -> Iterator[tuple[str, dict]]:
    """("row 2", cells by column) for each row, counted as spreadsheets do, with the header as row 1."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, cells in enumerate(csv.DictReader(file), 2):
                if None in cells:
                    raise UserError(
                        f"{path}: row {number} has more cells than the header: put texts with commas in quotes"
                    )
                yield f"row {number}", cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not CSV in UTF-8 ({error})") from error


def read_json(path: Path) -> Iterator[tuple[str, dict]]:
    """("line 1", object) for each line of JSON lines, or ("entry 1", object) for each of a JSON list."""
    try:
        if path.suffix.lower() == ".json":
            found = [(f"entry {number}", value) for number, value in enumerate(listed(path), 1)]
        else:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            found = [
                (f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip()
            ]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error})") from error
    for number, value in found:
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise UserError(f"{path}: {number} is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: {number} is not a JSON object")
        yield number, value


def listed(path: Path) -> list:
    """A JSON list from a file."""
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
        return self.folder


@dataclasses.dataclass(frozen=True)
class PairFolderReader:
    """InstructPix2Pix's image pairs: <name>/{prompt.json, <seed>_0.jpg, <seed>_1.jpg}, listed in seeds.json as [[name, [seed, ...]], ...].

    The clips have one frame. The source caption is prompt.json's `input` or `caption`: the public sets have either.
    """

    path: Path
    clips: ClipSettings

    def items(self) -> list[ImagePair]:
        items, index = [], self.path / "seeds.json"
        for number, entry in enumerate(listed(index), 1):
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
        folder = self.path / item.folder
        prompt = self.prompt(folder / "prompt.json")
        source, edited, fps = read_pair(
            folder / f"{item.seed}_0.jpg", folder / f"{item.seed}_1.jpg", self.clips
        )
        captions = (prompt.get("input", prompt.get("caption", "")), prompt.get("output", ""))
        return Triplet(
            item.id,
            source,
            edited,
            prompt["edit"],
            *captions,
            "",
            fps,
            None,
            "",
            f"{self.path.name}/{item.where}",
        )

    def prompt(self, path: Path) -> dict:
        try:
            prompt = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON ({error})") from error
        if not isinstance(prompt, dict) or "edit" not in prompt:
            raise UserError(f"{path}: has no 'edit'")
        check_instruction(prompt["edit"])
        return prompt


# ---- the shapes world ----


@dataclasses.dataclass(frozen=True)
class ShapesItem(Item):
    """One triplet of the shapes world's sequence."""

    index: int


@dataclasses.dataclass(frozen=True)
class ShapesReader:
    """The first `count` triplets of a seed's sequence; `data/shapes.py` says what the arguments mean."""

    count: int
    seed: int = 0
    split: str = "train"
    kinds: tuple[str, ...] = ()  # () = all of the world's
    size: int = 64
    frames: int = 8
    world: str = "shapes"

    def items(self) -> list[ShapesItem]:
        self.spec(0)  # its arguments are wrong for all or for none
        sequence = hashlib.sha256(
            repr((self.seed, self.split, self.kinds, self.size, self.frames, self.world)).encode()
        ).hexdigest()[:8]
        return [
            ShapesItem(f"shapes-{sequence}-{index}", f"{self.world} {index}", index)
            for index in range(self.count)
        ]

    def read(self, item: ShapesItem) -> Triplet:
        return dataclasses.replace(shapes.triplet(self.spec(item.index)), id=item.id)

    def spec(self, index: int) -> shapes.Spec:
        return shapes.sample_spec(
            self.seed, index, self.split, self.kinds, self.size, self.frames, self.world
        )


# ---- clips ----


def read_pair(
    source: Path, edited: Path, settings: ClipSettings
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both clips in one size and length, [T, H, W, 3] uint8, and their frames/s. Raises UserError as `read_both` does."""
    first, second, fps = read_clips(source, edited, settings)
    shorter = min(len(first), len(second))
    return first[:shorter], second[:shorter], fps


def read_clips(
    source: Path, edited: Path, settings: ClipSettings
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both clips in one size, each of its own length, [T, H, W, 3] uint8, and their frames/s.

    Raises UserError where a clip cannot be read, or the two do not belong together: rates, shapes or lengths too far apart.
    """
    from ivid2vid_jax.video.read import (
        open_clip,  # here and not above: the shapes world needs no av
    )

    clips = [open_clip(path, fps=settings.fps) for path in (source, edited)]
    rates = [float(clip.rate) for clip in clips]
    if all(clip.is_container for clip in clips) and max(rates) > (1 + LENGTHS) * min(rates):
        raise UserError(
            f"the source runs at {rates[0]:g} frames/s and the edited clip at {rates[1]:g}: which frames belong together is not known"
        )
    size = common_size([(clip.height, clip.width) for clip in clips], settings.size)
    frames = [read_fitted(clip, size, settings.frames) for clip in clips]
    shorter, longer = sorted(len(each) for each in frames)
    if longer - shorter > LENGTHS * longer:
        raise UserError(
            f"the source has {len(frames[0])} frames and the edited clip {len(frames[1])}: more than {LENGTHS:.0%} apart"
        )
    return *frames, float(clips[0].fps or clips[0].rate)


def common_size(sizes: list[tuple[int, int]], shorter_side: int) -> tuple[int, int]:
    """The size (height, width) of the smaller clip with its shorter side at most `shorter_side`; UserError where the shapes differ."""
    aspects = [width / height for height, width in sizes]
    if max(aspects) > (1 + ASPECTS) * min(aspects):
        (h0, w0), (h1, w1) = sizes
        raise UserError(
            f"the source is {w0}x{h0} and the edited clip {w1}x{h1}: their shapes differ by more than {ASPECTS:.0%}"
        )
    smaller = min(sizes, key=min)
    scale = min(1, shorter_side / min(smaller))
    return round(smaller[0] * scale), round(smaller[1] * scale)


def read_fitted(clip, size: tuple[int, int], most: int | None) -> np.ndarray:
    """The clip's first frames at that size, resized as they are decoded, so that full-size frames are never held together."""
    from ivid2vid_jax.video.fit import resize

    return np.stack([resize(frame.pixels, size) for frame in islice(clip.frames(), most)])
