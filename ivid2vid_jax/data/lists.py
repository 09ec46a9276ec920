"""Lists of clip pairs: CSV, JSON lines, JSON and parquet, by the column names of public sets."""

import csv
import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ivid2vid_jax.data.clip_pairs import ClipSettings, read_pair
from ivid2vid_jax.data.items import Item
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError, check_instruction

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
LIST_SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
REQUIRED = ("src_video", "tgt_video", "prompt")
OPTIONAL = ("source_caption", "edited_caption", "edit_type", "licence")
DELIMITERS = ",;\t|"
SHORT_NAMES = {"src": "src_video", "tgt": "tgt_video"}  # of --columns

# Field -> names in public sets, the first one that a list has: Kiwi-Edit, DiffSynth-Studio,
# InstructPix2Pix (Hugging Face), MagicBrush, UltraEdit, HQ-Edit, OmniEdit.
NAMES = {
    "src_video": (
        *("src_video", "original_image", "source_img", "source_image", "source_video", "src_img"),
        *("input_image", "src_image", "src_path", "original_video", "source", "file_name"),
        *("input_video", "input", "video", "image"),
    ),
    "tgt_video": (
        *("tgt_video", "edited_image", "target_img", "edited_img", "target_image", "edited_video"),
        *("target_video", "output_image", "tgt_image", "tgt_path", "target", "edited", "output"),
    ),
    "prompt": (
        *("prompt", "edit_prompt", "instruction", "edit_instruction", "edit"),
        *("edited_prompt_list", "instructions"),
    ),
    "source_caption": ("source_caption", "original_prompt", "src_caption", "input_prompt"),
    "edited_caption": ("edited_caption", "edited_prompt", "target_caption", "output_prompt"),
    "edit_type": ("edit_type", "task", "edit_class"),
    "licence": ("licence", "license"),
}


def parse_columns(words: tuple[str, ...]) -> dict[str, str]:
    """("src=original_image", ...) as field -> column; UserError for an unknown field."""
    columns = {}
    for word in words:
        field, equals, column = word.partition("=")
        field = SHORT_NAMES.get(field, field)
        if not equals or not column or field not in NAMES:
            raise UserError(
                f"--columns {word}: give FIELD=COLUMN with one of the fields src, tgt, "
                f"{', '.join(name for name in NAMES if name not in SHORT_NAMES.values())}"
            )
        columns[field] = column
    return columns


def find_columns(path: Path, where: str, header: list[str], given: dict[str, str]) -> dict:
    """Field -> column of a list; UserError that names what is missing and what is there."""
    columns = {}
    for field, names in NAMES.items():
        names = (given[field],) if field in given else names
        column = next((name for name in names if name in header), None)
        if column is not None:
            columns[field] = column
        elif field in REQUIRED or field in given:
            missing = given.get(field, field)
            raise UserError(
                f"{path}: {where} has no {missing} (it has: {', '.join(map(str, header))}); name "
                "the columns, e.g. --columns src=before tgt=after prompt=text"
            )
    return columns


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
    """A CSV or JSON list of pairs. Images are clips of one frame.

    Attributes:
        path: the list.
        root: folder that its paths are relative to.
        clips: how clips are read.
        columns: field -> column, for names that are not the usual ones.
    """

    path: Path
    root: Path
    clips: ClipSettings
    columns: dict[str, str] = dataclasses.field(default_factory=dict)

    def items(self) -> list[ListRow]:
        """The rows; UserError if one lacks a column or holds something else than text."""
        read_rows = read_json if self.path.suffix.lower() in (".json", ".jsonl") else read_csv
        rows = []
        seen: dict[str, int] = {}
        for number, cells in read_rows(self.path):
            columns = find_columns(self.path, number, list(cells), self.columns)
            texts = dict.fromkeys((*REQUIRED, *OPTIONAL), "")
            texts |= {field: cells[column] or "" for field, column in columns.items()}
            if wrong := [name for name, value in texts.items() if not isinstance(value, str)]:
                names = ", ".join(columns[name] for name in wrong)
                raise UserError(f"{self.path}: {number}: {names} must be text")
            source, edited, instruction = (texts.pop(name) for name in REQUIRED)
            source, edited = portable_path(source), portable_path(edited)
            id = unique_name(pair_id(source, edited, instruction), seen)
            where = f"{self.path.name} {number}"
            rows.append(ListRow(id, where, source, edited, instruction, **texts))
        return rows

    def read(self, item: ListRow) -> Triplet:
        """Reads a row; UserError for an empty cell or clips that cannot be read."""
        for name, path in (("source", item.source), ("edited", item.edited)):
            if not path.strip():
                raise UserError(f"the path of the {name} clip is empty")
            if "://" in path:
                raise UserError(f"{path}: is a URL; download the files and list their paths")
        check_instruction(item.instruction)
        pair = read_pair(self.root / item.source, self.root / item.edited, self.clips)
        return triplet_of(item, *pair, provenance=f"{item.where}: {item.source}, {item.edited}")


@dataclasses.dataclass(frozen=True)
class ParquetReader:
    """A parquet file whose rows hold encoded images, as `datasets` writes them.

    Attributes:
        path: the file. Row groups are read one at a time.
        clips: how clips are read.
        columns: field -> column, for names that are not the usual ones.
    """

    path: Path
    clips: ClipSettings
    columns: dict[str, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def table(self) -> Any:
        """The open file; UserError if it is not parquet."""
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: is not a parquet file that can be read") from error

    @cached_property
    def fields(self) -> dict[str, str]:
        """Field -> column."""
        header = self.table.schema_arrow.names
        return find_columns(self.path, "the schema", header, self.columns)

    def __getstate__(self) -> dict:
        """Without the open file: readers are sent to worker processes."""
        return {name: vars(self)[name] for name in ("path", "clips", "columns")}

    def items(self) -> list[ListRow]:
        """The rows, without their images."""
        texts = [field for field in self.fields if field not in ("src_video", "tgt_video")]
        rows: list[ListRow] = []
        batches = self.table.iter_batches(columns=[self.fields[field] for field in texts])
        for batch in batches:
            for cells in batch.to_pylist():
                number = len(rows)
                values = {field: as_text(cells[self.fields[field]]) for field in texts}
                instruction = values.pop("prompt")
                id, where = f"{self.path.stem}-{number:08d}", f"{self.path.name} row {number}"
                rows.append(ListRow(id, where, f"row {number}", "", instruction, **values))
        return rows

    def read(self, item: ListRow) -> Triplet:
        """Reads a row's images; UserError for a row without them."""
        number = int(item.id.rpartition("-")[2])
        check_instruction(item.instruction)
        group, offset = self.row_group(number)
        names = [self.fields["src_video"], self.fields["tgt_video"]]
        rows = self.table.read_row_group(group, columns=names).slice(offset, 1).to_pylist()[0]
        with tempfile.TemporaryDirectory() as folder:
            paths: list[Path] = []
            for name in names:
                cell = rows[name]
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(data, bytes):
                    raise UserError(f"{name} holds no image (its bytes are missing)")
                paths.append(Path(folder) / f"{len(paths)}.png")
                paths[-1].write_bytes(data)
            pair = read_pair(paths[0], paths[1], self.clips)
        return triplet_of(item, *pair, provenance=item.where)

    def row_group(self, number: int) -> tuple[int, int]:
        """The row group of a row, and the row's place in it."""
        for group in range(self.table.num_row_groups):
            count = self.table.metadata.row_group(group).num_rows
            if number < count:
                return group, number
            number -= count
        raise UserError(f"{self.path}: has no row {number}")


def as_text(value: Any) -> str:
    """A cell as text; of a list of instructions the first."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""


def triplet_of(item: ListRow, source, edited, fps: float, provenance: str) -> Triplet:
    """The triplet of a row and its clips [T, H, W, 3]."""
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
        provenance=provenance,
    )


def portable_path(text: str) -> str:
    """A path without blanks at its ends; backslashes of Windows become slashes."""
    text = text.strip()
    return text.replace("\\", "/") if "/" not in text else text


def pair_id(source: str, edited: str, instruction: str) -> str:
    """Returns an id that is the same for the same row in any list on any machine."""
    digest = hashlib.sha256(json.dumps([source, edited, instruction]).encode()).hexdigest()
    return f"{Path(source).stem}-{digest[:12]}"


def unique_name(name: str, seen: dict[str, int]) -> str:
    """Returns the name, followed by a number from its second use on; counts uses in `seen`."""
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def read_text(path: Path) -> str:
    """Text in UTF-8, or in UTF-16 with its byte order mark; UserError for anything else."""
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8 or UTF-16 ({error})") from error


def read_csv(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields ("row 2", cells by column), counted as spreadsheets do: the header is row 1.

    Cells are separated by commas, semicolons, tabs or bars, whichever the header has most of.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        for number, cells in enumerate(rows, 2):
            if None in cells:
                raise UserError(
                    f"{path}: row {number} has more cells than the header: put texts with "
                    f"{delimiter!r} in quotes"
                )
            yield f"row {number}", cells
    except csv.Error as error:
        raise UserError(f"{path}: is not CSV ({error})") from error


def read_json(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields ("line 1", object) of JSON lines, or ("entry 1", object) of a JSON list."""
    values: list[tuple[str, Any]]
    if path.suffix.lower() == ".json":
        values = [(f"entry {i}", value) for i, value in enumerate(read_json_list(path), 1)]
    else:
        lines = read_text(path).split("\n")
        values = [(f"line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
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
        value = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(value, list):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not a list")
    return value
