"""Sets of clips to evaluate on: a list beside its clips, LOVEU-TGVE-2023, and the paper's five names.

| set | layout |
|---|---|
| a list | NAME.csv or .jsonl with `video` and `instruction`, paths from its own folder; optional: `id`, `source_caption`, `edited_caption`, `edit_type`, `mask` |
| a folder | as a list, in DIR/instructions.csv |
| LOVEU-TGVE-2023 | DIR/LOVEU-TGVE*.csv or .xlsx, DIR/{DAVIS,youtube,videvo}_480p/480p_frames/NAME/*.jpg or 480p_videos/NAME.mp4, as published |
| cars, tai-chi, movie, city, school | ROOT/cars and so on, each such a folder; ROOT is the folder `data`, or --root |

Edited clips lie in one folder, EDITED/ID.mp4 (.webm, .gif, .webp, ...) or EDITED/ID/ with the frames as images. The id is the list's, or the video's name
without its ending (a number is added from its second use on); LOVEU-TGVE-2023's are those of its submissions, DAVIS_480p/stunt/style. A mask is a clip
or an image of the source's size, white where the edit may change something.
"""

import collections
import csv
import dataclasses
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from ivid2vid_jax.data.readers import LISTS, read_csv, read_json, unique
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.video.read import ANIMATIONS
from ivid2vid_jax.video.write import CONTAINERS

PAPER_SETS = (
    "cars",
    "tai-chi",
    "movie",
    "city",
    "school",
)  # the paper's; which clips they held is not known (Tai Chi: most likely TaiChi-HD's)
LIST = "instructions.csv"
WORDS = {
    "video": ("video", "src_video"),
    "instruction": ("instruction", "prompt"),
}  # Kiwi-Edit's and DiffSynth-Studio's names do too
OPTIONAL = ("source_caption", "edited_caption", "edit_type")
TGVE_PARTS = ("DAVIS_480p", "youtube_480p", "videvo_480p")
TGVE_EDITS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}
ENDINGS = (*CONTAINERS, ".mov", ".mkv", ".avi", *ANIMATIONS, ".png")


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """An edit to judge. source: the clip; mask: None where the edit may change everything. where: what a user would look for."""

    id: str
    source: Path
    instruction: str
    source_caption: str = ""
    edited_caption: str = ""
    edit_type: str = ""
    mask: Path | None = None
    where: str = ""


def open_set(data: str, root: Path) -> list[EvaluationTask]:
    """The tasks of a list, a folder or a preset's name. Raises UserError that says what a set looks like."""
    path = root / data if data in PAPER_SETS else Path(data).expanduser()
    if data in PAPER_SETS and not path.is_dir():
        raise UserError(
            f"--data {data}: {path} is no folder; put its clips and {LIST} there, or name another --root"
        )
    if path.is_file() and path.suffix.lower() in LISTS:
        return listed(path)
    if table := tgve_table(path):
        return tgve(path, table)
    if (path / LIST).is_file():
        return listed(path / LIST)
    kinds = f"'shapes', a list ({', '.join(LISTS)}), a folder with {LIST}, LOVEU-TGVE-2023, or one of {', '.join(PAPER_SETS)}"
    raise UserError(
        f"--data {data}: {'is not' if path.exists() else 'no such file or folder, and not'} one of these: {kinds}"
    )


def listed(path: Path) -> list[EvaluationTask]:
    """The rows of a list."""
    tasks, seen = [], {}
    for number, cells in (read_csv if path.suffix.lower() == ".csv" else read_json)(path):
        found = {
            field: next((cells[word] for word in words if cells.get(word)), "")
            for field, words in WORDS.items()
        }
        if missing := [
            f"{field} (or {WORDS[field][1]})" for field in found if not str(found[field]).strip()
        ]:
            raise UserError(
                f"{path}: {number} has no {', '.join(missing)} (it has: {', '.join(map(str, cells))})"
            )
        id = check_id(
            str(cells.get("id") or unique(Path(found["video"]).stem, seen)), f"{path}: {number}"
        )
        mask = path.parent / cells["mask"] if cells.get("mask") else None
        words = {name: str(cells.get(name) or "") for name in OPTIONAL}
        tasks.append(
            EvaluationTask(
                id,
                path.parent / found["video"],
                found["instruction"],
                **words,
                mask=mask,
                where=f"{path.name} {number}",
            )
        )
    return checked(tasks, path)


def checked(tasks: list[EvaluationTask], path: Path) -> list[EvaluationTask]:
    ids = collections.Counter(task.id for task in tasks)
    if not tasks:
        raise UserError(f"{path}: lists no clip")
    if twice := [id for id, count in ids.items() if count > 1]:
        raise UserError(
            f"{path}: the id {twice[0]!r} is there {ids[twice[0]]} times; each edit needs its own"
        )
    return tasks


def check_id(id: str, where: str) -> str:
    parts = PurePosixPath(id).parts
    if not parts or id.startswith("/") or ".." in parts or "\\" in id:
        raise UserError(f"{where}: the id {id!r} is no relative path without '..'")
    return id


def find_edited(folder: Path, id: str) -> Path:
    """The edited clip of an id; UserError where there is none or more than one."""
    found = [
        path
        for path in (folder / id, *(folder / f"{id}{ending}" for ending in ENDINGS))
        if path.exists()
    ]
    if not found:
        raise UserError(
            f"no edited clip: {folder / id} is neither a folder of frames nor a file with an ending ({', '.join(ENDINGS)})"
        )
    if len(found) > 1:
        raise UserError(
            f"{len(found)} edited clips, {found[0].name} and {found[1].name} in {found[0].parent}; leave one"
        )
    return found[0]


# ---- LOVEU-TGVE-2023 ----


def tgve_table(folder: Path) -> Path | None:
    """The set's table of captions, of which releases carry one as a spreadsheet or as CSV."""
    found = (
        [
            path
            for ending in ("csv", "xlsx")
            for path in sorted(folder.glob(f"LOVEU-TGVE*.{ending}"))
        ]
        if folder.is_dir()
        else []
    )
    return found[0] if found else None


def tgve(folder: Path, table: Path) -> list[EvaluationTask]:
    """Four tasks a video. The set has captions and no instructions: the target caption is given in its place. Rows without captions are headings.

    A video that is not there keeps its tasks, in the part of the one before it, so that it is named where they are judged; UserError where none is there.
    """
    rows = csv_rows if table.suffix == ".csv" else xlsx_rows
    lines = iter(rows(table))
    head = [cell.strip() for cell in next(lines, [])]
    if missing := [
        name for name in ("Video name", "Our GT caption", *TGVE_EDITS.values()) if name not in head
    ]:
        raise UserError(
            f"{table}: has no column {', '.join(map(repr, missing))}: not LOVEU-TGVE-2023's"
        )
    tasks, part, lost = [], TGVE_PARTS[0], []
    for number, line in enumerate(lines, 2):
        cells = dict(zip(head, (cell.strip() for cell in line), strict=False))
        name, caption = cells.get("Video name", ""), cells.get("Our GT caption", "")
        if not name or not caption:
            continue
        part, source = tgve_source(folder, name) or (part, folder / part / "480p_frames" / name)
        lost += [] if source.exists() else [f"row {number}: {name}"]
        for edit, column in TGVE_EDITS.items():
            if wanted := cells.get(column, ""):
                tasks.append(
                    EvaluationTask(
                        check_id(f"{part}/{name}/{edit}", table.name),
                        source,
                        wanted,
                        caption,
                        wanted,
                        edit,
                        where=f"{table.name} row {number}",
                    )
                )
    if lost and not any(task.source.exists() for task in tasks):
        raise UserError(
            f"{table}: {lost[0]} is neither in 480p_frames nor in 480p_videos of {', '.join(TGVE_PARTS)}, nor is any other"
        )
    return checked(tasks, table)


def tgve_source(folder: Path, name: str) -> tuple[str, Path] | None:
    for part in TGVE_PARTS:
        for source in (
            folder / part / "480p_frames" / name,
            folder / part / "480p_videos" / f"{name}.mp4",
        ):
            if source.exists():
                return part, source
    return None


def csv_rows(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not CSV in UTF-8 ({error})") from error


def xlsx_rows(path: Path) -> list[list[str]]:
    """The cells of a workbook's first sheet as text (ECMA-376: shared strings and values by their references)."""
    try:
        with zipfile.ZipFile(path) as book:
            strings = (
                [
                    text_of(item)
                    for item in ElementTree.fromstring(book.read("xl/sharedStrings.xml"))
                ]
                if "xl/sharedStrings.xml" in book.namelist()
                else []
            )
            return [
                cells_of(row, strings)
                for row in ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml")).findall(
                    ".//{*}row"
                )
            ]
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError) as error:
        raise UserError(
            f"{path}: is not a spreadsheet that can be read ({error}); save it as CSV beside it"
        ) from error


def text_of(element) -> str:
    return "".join(part.text or "" for part in element.findall(".//{*}t"))


def cells_of(row, strings: list[str]) -> list[str]:
    cells = []
    for cell in row.findall("{*}c"):
        column = 0
        for letter in re.match("[A-Z]+", cell.get("r", "A")).group():
            column = 26 * column + ord(letter) - ord("A") + 1
        value = cell.findtext("{*}v") or ""
        text = (
            strings[int(value)]
            if cell.get("t") == "s"
            else text_of(cell)
            if cell.get("t") == "inlineStr"
            else value
        )
        cells += [""] * (column - 1 - len(cells)) + [text]
    return cells
