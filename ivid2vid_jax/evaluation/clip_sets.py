"""Sets of clips to evaluate on: a list beside its clips, LOVEU-TGVE-2023, and the paper's five.

| set | layout |
|---|---|
| a list | NAME.csv or NAME.jsonl, see below |
| a folder | DIR/instructions.csv, a list |
| LOVEU-TGVE-2023 | as published, see below |
| cars, tai-chi, movie, city, school | ROOT/cars and so on, each such a folder; ROOT: --root |

A list has the columns `video` and `instruction`, and optionally `tgt_video` (the true edit), `id`,
`source_caption`, `edited_caption`, `edit_type` and `mask`; paths are relative to the list's folder.
Other names are those of `prepare` (`data/lists.py`), or given by --columns. A mask is a clip or an
image of the source's size, white where the edit may change something.

LOVEU-TGVE-2023 is DIR/LOVEU-TGVE*.csv or .xlsx, with the clips in
DIR/{DAVIS,youtube,videvo}_480p/480p_frames/NAME/*.jpg or 480p_videos/NAME.mp4.

Edited clips are in one folder, as EDITED/ID.mp4 (.webm, .gif, .webp, ...) or as frames in
EDITED/ID/. The id is the list's, or the video's name without its suffix (numbered from its second
use on). Ids of LOVEU-TGVE-2023 are those of its submissions, such as DAVIS_480p/stunt/style.
"""

import collections
import csv
import dataclasses
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ivid2vid_jax.data.lists import (
    NAMES,
    TEXT_SUFFIXES,
    parse_columns,
    read_csv,
    read_json,
    unique_name,
)
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.versions import install_command
from ivid2vid_jax.video.read import ANIMATIONS
from ivid2vid_jax.video.write import CONTAINERS

# The paper does not say which clips its sets held (Tai Chi: most likely TaiChi-HD's).
PAPER_SETS = ("cars", "tai-chi", "movie", "city", "school")
LIST = "instructions.csv"
# Column -> its name as a field of `prepare`, whose names in public sets are known too.
REQUIRED = {"video": "src_video", "instruction": "prompt"}
OPTIONAL = ("source_caption", "edited_caption", "edit_type")
TGVE_NAME, TGVE_CAPTION = "Video name", "Our GT caption"
TGVE_PARTS = ("DAVIS_480p", "youtube_480p", "videvo_480p")
TGVE_EDITS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}
SUFFIXES = (*CONTAINERS, ".mov", ".mkv", ".avi", *ANIMATIONS, ".png")


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """One edit to evaluate.

    Attributes:
        id: names the edited clip.
        source: the source clip.
        instruction: of the edit.
        source_caption: what the source shows.
        edited_caption: what the edited clip should show.
        edit_type: the set's own category.
        mask: where the edit may change something; None: everywhere.
        target: the true edit; None: not known.
        where: for error messages, the row of the list.
    """

    id: str
    source: Path
    instruction: str
    source_caption: str = ""
    edited_caption: str = ""
    edit_type: str = ""
    mask: Path | None = None
    target: Path | None = None
    where: str = ""


def open_set(data: str, root: Path, columns: tuple[str, ...] = ()) -> list[EvaluationTask]:
    """The tasks of a list, a folder or a set of the paper (a folder of `root`).

    columns: column names of a list, such as "src=original_image".

    Raises:
        UserError: it is none of these; the message says what a set looks like.
    """
    path = root / data if data in PAPER_SETS else Path(data).expanduser()
    if data in PAPER_SETS and not path.is_dir():
        raise UserError(
            f"--data {data}: no folder {path}; put its clips and {LIST} there, or name another "
            "--root"
        )
    if path.is_file() and path.suffix.lower() in TEXT_SUFFIXES:
        return read_list(path, columns)
    if table := find_tgve_table(path):
        return read_tgve(path, table)
    if (path / LIST).is_file():
        return read_list(path / LIST, columns)
    problem = "is not" if path.exists() else "no such file or folder, and not"
    raise UserError(
        f"--data {data}: {problem} one of these: 'shapes', a dataset of prepare, a list "
        f"({', '.join(TEXT_SUFFIXES)}), a folder with {LIST}, LOVEU-TGVE-2023, or one of "
        f"{', '.join(PAPER_SETS)}"
    )


def read_list(path: Path, columns: tuple[str, ...] = ()) -> list[EvaluationTask]:
    """The tasks of a CSV or JSON list; columns: see `open_set`."""
    given = parse_columns(columns)
    tasks: list[EvaluationTask] = []
    stems: dict[str, int] = {}
    read = read_json if path.suffix.lower() in (".json", ".jsonl") else read_csv
    for row, cells in read(path):
        video = find_cell(cells, "src_video", given, "video")
        instruction = find_cell(cells, "prompt", given, "instruction")
        missing = [
            f"{name} (or {REQUIRED[name]})"
            for name, value in (("video", video), ("instruction", instruction))
            if not value.strip()
        ]
        if missing:
            header = ", ".join(map(str, cells))
            raise UserError(
                f"{path}: {row} has no {', '.join(missing)} (it has: {header}); "
                "name the columns, e.g. --columns src=before tgt=after prompt=text"
            )
        target = find_cell(cells, "tgt_video", given)
        id = str(cells.get("id") or unique_name(Path(video).stem, stems))
        task = EvaluationTask(
            check_id(id, f"{path}: {row}"),
            path.parent / video,
            instruction,
            **{name: find_cell(cells, name, given) for name in OPTIONAL},
            mask=path.parent / cells["mask"] if cells.get("mask") else None,
            target=path.parent / target if target else None,
            where=f"{path.name} {row}",
        )
        tasks.append(task)
    return check_tasks(tasks, path)


def find_cell(
    cells: dict[str, Any], field: str, given: dict[str, str], first_name: str = ""
) -> str:
    """The text of a field of `prepare` in a row; "" if the row has none.

    given: column names by field, instead of the usual ones. first_name: goes before those.
    """
    names = (given[field],) if field in given else (first_name, *NAMES[field])
    return next((str(cells[name]) for name in names if cells.get(name)), "")


def check_tasks(tasks: list[EvaluationTask], path: Path) -> list[EvaluationTask]:
    """Returns the tasks. Raises UserError if there are none or an id is used twice."""
    counts = collections.Counter(task.id for task in tasks)
    if not tasks:
        raise UserError(f"{path}: lists no clip")
    if duplicates := [id for id, count in counts.items() if count > 1]:
        id = duplicates[0]
        raise UserError(f"{path}: the id {id!r} is used {counts[id]} times; ids must be unique")
    return tasks


def check_id(id: str, where: str) -> str:
    """Returns the id. Raises UserError unless it is a path below the folder of edited clips."""
    parts = PurePosixPath(id).parts
    if not parts or id.startswith("/") or ".." in parts or "\\" in id:
        raise UserError(f"{where}: the id {id!r} is no relative path without '..'")
    return id


def find_edited(folder: Path, id: str) -> Path:
    """The edited clip of an id. Raises UserError if there is none, or more than one."""
    candidates = (folder / id, *(folder / f"{id}{suffix}" for suffix in SUFFIXES))
    paths = [path for path in candidates if path.exists()]
    if not paths:
        raise UserError(
            f"no edited clip: {folder / id} is neither a folder of frames nor a file with one of "
            f"the suffixes {', '.join(SUFFIXES)}"
        )
    if len(paths) > 1:
        raise UserError(
            f"{len(paths)} edited clips, {paths[0].name} and {paths[1].name} in {paths[0].parent}; "
            "delete all but one"
        )
    return paths[0]


# ---- LOVEU-TGVE-2023 ----


def find_tgve_table(folder: Path) -> Path | None:
    """The table of captions: releases have it as CSV or as a spreadsheet. None: no such table."""
    if not folder.is_dir():
        return None
    tables = (folder.glob(f"LOVEU-TGVE*.{suffix}") for suffix in ("csv", "xlsx"))
    return next((path for paths in tables for path in sorted(paths)), None)


def read_tgve(folder: Path, table: Path) -> list[EvaluationTask]:
    """Four tasks per video; rows without a caption are headings.

    The set has captions but no instructions, so the target caption is the instruction. A missing
    video keeps its tasks, with a path in the part of the video before it: it is reported when they
    are evaluated. Raises UserError if all videos are missing.
    """
    rows = csv_rows(table) if table.suffix == ".csv" else xlsx_rows(table)
    columns = [cell.strip() for cell in next(rows, [])]
    expected = (TGVE_NAME, TGVE_CAPTION, *TGVE_EDITS.values())
    if missing := [name for name in expected if name not in columns]:
        raise UserError(
            f"{table}: no column {', '.join(map(repr, missing))}: not LOVEU-TGVE-2023's table"
        )
    tasks: list[EvaluationTask] = []
    part, missing_videos = TGVE_PARTS[0], []
    for number, row in enumerate(rows, 2):
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=False))
        name, caption = cells.get(TGVE_NAME, ""), cells.get(TGVE_CAPTION, "")
        if not name or not caption:
            continue
        part, source = tgve_source(folder, name) or (part, folder / part / "480p_frames" / name)
        if not source.exists():
            missing_videos.append(f"row {number}: {name}")
        where = f"{table.name} row {number}"
        for edit, column in TGVE_EDITS.items():
            if target := cells.get(column, ""):
                id = check_id(f"{part}/{name}/{edit}", table.name)
                tasks.append(EvaluationTask(id, source, target, caption, target, edit, where=where))
    if missing_videos and not any(task.source.exists() for task in tasks):
        raise UserError(
            f"{table}: {missing_videos[0]} is neither in 480p_frames nor in 480p_videos of "
            f"{', '.join(TGVE_PARTS)}, nor is any other video"
        )
    return check_tasks(tasks, table)


def tgve_source(folder: Path, name: str) -> tuple[str, Path] | None:
    """The part of the set that has a video, and its path there; None if no part has it."""
    for part in TGVE_PARTS:
        for path in (f"480p_frames/{name}", f"480p_videos/{name}.mp4"):
            if (folder / part / path).exists():
                return part, folder / part / path
    return None


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Yields the rows of a CSV file. Raises UserError if it is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not CSV in UTF-8 ({error})") from error


def xlsx_rows(path: Path) -> Iterator[list[str]]:
    """Yields the rows of a workbook's first sheet as text; empty cells are "".

    Raises:
        UserError: the file is no workbook, or openpyxl is not installed.
    """
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise UserError(
            f"{path}: reading spreadsheets needs openpyxl: {install_command('evaluation')}, "
            "or save it as CSV in the same folder"
        ) from error
    try:
        book = openpyxl.load_workbook(path, data_only=True)
    except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{path}: is not a readable spreadsheet ({error}); save it as CSV in the same folder"
        ) from error
    for row in book.worksheets[0].iter_rows(values_only=True):
        yield ["" if value is None else str(value) for value in row]
