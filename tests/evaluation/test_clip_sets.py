"""Sets of clips: lists, folders, the paper's sets, LOVEU-TGVE-2023 as published; finding edits."""

import csv
import time
import zipfile

import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import clip_sets

COLUMNS = ["Video name", "Our GT caption", *clip_sets.TGVE_EDITS.values()]
ROWS = [
    ["DAVIS Videos:"],
    [
        "stunt",
        "a man jumps",
        "a man jumps, oil",
        "a dog jumps",
        "a man jumps on Mars",
        "a dog jumps on Mars",
    ],
    ["", ""],
    ["cat", "a cat", "a cat & oil", "a dog", "a cat at sea", ""],
]
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
PARTS = {  # part -> (content type, relationship)
    "workbook.xml": ("sheet.main", "officeDocument"),
    "worksheets/sheet1.xml": ("worksheet", "worksheet"),
    "sharedStrings.xml": ("sharedStrings", "sharedStrings"),
}


def write_list(folder, rows, columns=("video", "instruction")):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / clip_sets.LIST).open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder


def write_xlsx(path, rows):
    """A workbook as spreadsheet programs write it.

    Strings are shared, in two runs of text each; empty cells are left out. A last row has an inline
    string and a number.
    """
    strings = sorted({cell for row in rows for cell in row if cell})
    with zipfile.ZipFile(path, "w") as book:
        for name, text in package_parts().items():
            book.writestr(name, text)
        book.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{shared(strings)}</sst>')
        book.writestr(
            "xl/worksheets/sheet1.xml",
            f'<worksheet xmlns="{MAIN}"><sheetData>{sheet(rows, strings)}</sheetData></worksheet>',
        )


def shared(strings):
    runs = ((s[:2], s[2:]) for s in (s.replace("&", "\0") for s in strings))
    items = (
        "<si>" + "".join(f'<r><t xml:space="preserve">{run}</t></r>' for run in pair) + "</si>"
        for pair in runs
    )
    return "".join(items).replace("\0", "&amp;")


def sheet(rows, strings):
    lines = []
    for r, row in enumerate(rows, 1):
        cells = (
            f'<c r="{chr(65 + c)}{r}" t="s"><v>{strings.index(cell)}</v></c>'
            for c, cell in enumerate(row)
            if cell
        )
        lines.append(f'<row r="{r}">{"".join(cells)}</row>')
    inline = '<c r="AB9" t="inlineStr"><is><t>in</t></is></c>'
    return "".join(lines) + f'<row r="9">{inline}<c r="AC9"><v>7</v></c></row>'


def package_parts():
    """The parts of a workbook that say where the others are."""
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.{}+xml"
    types = "".join(
        f'<Override PartName="/xl/{part}" ContentType="{kind.format(name)}"/>'
        for part, (name, _) in PARTS.items()
    )

    def relationships(parts, folder=""):
        links = "".join(
            f'<Relationship Id="rId{i}" Type="{OFFICE}/{PARTS[part][1]}" Target="{folder}{part}"/>'
            for i, part in enumerate(parts)
        )
        return f'<Relationships xmlns="{PACKAGE}/relationships">{links}</Relationships>'

    sheets = '<sheets><sheet name="a" sheetId="1" r:id="rId0"/></sheets>'
    return {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">{types}</Types>',
        "_rels/.rels": relationships(["workbook.xml"], "xl/"),
        "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}">{sheets}</workbook>',
        "xl/_rels/workbook.xml.rels": relationships(list(PARTS)[1:]),
    }


@pytest.fixture
def tgve(tmp_path):
    (tmp_path / "DAVIS_480p" / "480p_frames" / "stunt").mkdir(parents=True)
    (tmp_path / "videvo_480p" / "480p_videos").mkdir(parents=True)
    (tmp_path / "videvo_480p" / "480p_videos" / "cat.mp4").touch()
    return tmp_path


def test_a_folder_with_a_list(tmp_path):
    rows = [
        ["a/car.mp4", "make it red", "", "a red car", "masks/car.png"],
        ["b/car.mp4", "make it blue", "", "", ""],
        ["dog.gif", "a, cat", "my/dog", "", ""],
    ]
    columns = ("src_video", "prompt", "id", "edited_caption", "mask")
    folder = write_list(tmp_path / "set", rows, columns)
    tasks = clip_sets.open_set(str(folder), tmp_path)
    assert [task.id for task in tasks] == ["car", "car-2", "my/dog"]
    assert [task.instruction for task in tasks] == ["make it red", "make it blue", "a, cat"]
    assert tasks[0].source == folder / "a/car.mp4"
    assert tasks[0].mask == folder / "masks/car.png" and tasks[1].mask is None
    assert tasks[0].edited_caption == "a red car" and tasks[0].where == "instructions.csv row 2"
    assert clip_sets.open_set(str(folder / clip_sets.LIST), tmp_path) == tasks
    (tmp_path / "list.jsonl").write_text('{"video": "x.mp4", "instruction": "go"}\n')
    (task,) = clip_sets.open_set(str(tmp_path / "list.jsonl"), tmp_path)
    assert task.source == tmp_path / "x.mp4"


def test_lists_of_triplets_have_true_edits(tmp_path):
    """By the names that prepare knows, or by --columns."""
    columns = ("src_video", "tgt_video", "prompt", "edited_prompt")
    write_list(
        tmp_path, [("a.mp4", "a2.mp4", "make it snow", "snow"), ("b.mp4", "", "x", "")], columns
    )
    first, second = clip_sets.open_set(str(tmp_path), tmp_path)
    assert (first.source, first.target) == (tmp_path / "a.mp4", tmp_path / "a2.mp4")
    assert (first.instruction, first.edited_caption) == ("make it snow", "snow")
    assert second.target is None
    write_list(tmp_path, [("a.mp4", "a2.mp4", "make it snow")], ("before", "after", "text"))
    with pytest.raises(UserError, match=r"no video .*--columns src=before tgt=after prompt=text"):
        clip_sets.open_set(str(tmp_path), tmp_path)
    given = ("src=before", "tgt=after", "prompt=text")
    assert clip_sets.open_set(str(tmp_path), tmp_path, given) == [
        clip_sets.EvaluationTask(
            "a",
            tmp_path / "a.mp4",
            "make it snow",
            target=tmp_path / "a2.mp4",
            where="instructions.csv row 2",
        )
    ]


@pytest.mark.parametrize("name", clip_sets.PAPER_SETS)
def test_the_papers_sets_are_folders(tmp_path, name):
    write_list(tmp_path / name, [["a.mp4", "go"]])
    assert [task.id for task in clip_sets.open_set(name, tmp_path)] == ["a"]
    missing = tmp_path / "elsewhere"
    with pytest.raises(
        UserError, match=rf"--data {name}: no folder {missing}/.*instructions\.csv.*another --root"
    ):
        clip_sets.open_set(name, missing)


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_loveu_tgve_2023(tgve, suffix):
    table = tgve / f"LOVEU-TGVE-2023_Dataset.{suffix}"
    if suffix == "xlsx":
        write_xlsx(table, [COLUMNS, *ROWS])
        assert list(clip_sets.xlsx_rows(table))[-1] == [""] * 27 + ["in", "7"]
    else:
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *ROWS])
    tasks = clip_sets.open_set(str(tgve), tgve)
    assert [task.id for task in tasks] == [
        *(f"DAVIS_480p/stunt/{edit}" for edit in clip_sets.TGVE_EDITS),
        *(f"videvo_480p/cat/{edit}" for edit in ("style", "object", "background")),
    ]
    assert tasks[0].source == tgve / "DAVIS_480p/480p_frames/stunt"
    task = tasks[4]
    assert task.source == tgve / "videvo_480p/480p_videos/cat.mp4"
    assert (task.source_caption, task.edited_caption) == ("a cat", "a cat & oil")
    assert (task.instruction, task.edit_type) == ("a cat & oil", "style")


def test_edits_are_found(tmp_path):
    (tmp_path / "DAVIS_480p" / "stunt" / "style").mkdir(parents=True)
    (tmp_path / "car.mp4").touch()
    assert clip_sets.find_edited(tmp_path, "DAVIS_480p/stunt/style").is_dir()
    assert clip_sets.find_edited(tmp_path, "car") == tmp_path / "car.mp4"
    (tmp_path / "car.gif").touch()
    with pytest.raises(UserError, match=r"2 edited clips, car\.mp4 and car\.gif"):
        clip_sets.find_edited(tmp_path, "car")
    with pytest.raises(
        UserError, match=r"no edited clip: .*dog is neither a folder of frames nor a file"
    ):
        clip_sets.find_edited(tmp_path, "dog")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([["a.mp4", ""]], ("video", "instruction"), r"row 2 has no instruction \(or prompt\)"),
        ([["a.mp4"]], ("clip",), r"row 2 has no video \(or src_video\), instruction"),
        ([], ("video", "instruction"), "lists no clip"),
        (
            [["a.mp4", "x", "i"], ["b.mp4", "x", "i"]],
            ("video", "instruction", "id"),
            "the id 'i' is used 2 times",
        ),
        ([["a.mp4", "x", "../i"]], ("video", "instruction", "id"), "'../i' is no relative path"),
        ([["a.mp4", "x", "/i"]], ("video", "instruction", "id"), "'/i' is no relative path"),
    ],
)
def test_errors_of_bad_lists(tmp_path, rows, columns, message):
    with pytest.raises(UserError, match=message):
        clip_sets.open_set(str(write_list(tmp_path, rows, columns)), tmp_path)


def test_errors_of_what_is_no_set(tgve):
    with pytest.raises(
        UserError, match="no such file or folder, and not one of these: 'shapes', a dataset of"
    ):
        clip_sets.open_set("nowhere", tgve)
    with pytest.raises(UserError, match="is not one of these"):
        clip_sets.open_set(str(tgve), tgve)


def test_errors_of_bad_tgve_tables(tgve):
    def tasks(*rows):
        write_xlsx(table, rows)
        return clip_sets.open_set(str(tgve), tgve)

    table = tgve / "LOVEU-TGVE_2023_data.xlsx"
    table.write_text("no zip")
    with pytest.raises(UserError, match=r"is not a readable spreadsheet \(.*; save it as CSV"):
        clip_sets.open_set(str(tgve), tgve)
    with pytest.raises(UserError, match="no column 'Object Change Caption', 'Background"):
        tasks(COLUMNS[:3], *ROWS)
    lost = ["lost", "a", "b", "c", "d", "e"]
    with pytest.raises(UserError, match="row 2: lost is neither in 480p_frames nor in 480p_videos"):
        tasks(COLUMNS, lost)
    some = tasks(COLUMNS, *ROWS, lost)
    assert len(some) == 11
    assert [task.id for task in some if not task.source.exists()] == [
        f"videvo_480p/lost/{edit}" for edit in clip_sets.TGVE_EDITS
    ]


def test_a_long_list_is_checked_in_linear_time(tmp_path):
    start = time.process_time()
    tasks = [clip_sets.EvaluationTask(str(i), tmp_path, "go") for i in range(20_000)]
    assert clip_sets.check_tasks(tasks, tmp_path) is tasks
    assert time.process_time() - start < 1
