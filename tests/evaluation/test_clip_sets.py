"""Sets of clips: lists, folders, the paper's names, LOVEU-TGVE-2023 as published; and where edits are found."""

import csv
import time
import zipfile

import pytest

from ivid2vid_jax.evaluation import clip_sets
from ivid2vid_jax.utils.errors import UserError

HEAD = ["Video name", "Our GT caption", *clip_sets.TGVE_EDITS.values()]
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


def write_list(folder, rows, head=("video", "instruction")):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / clip_sets.LIST, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return folder


def xlsx(path, rows):
    """As spreadsheet programs write it: shared strings, empty cells left out, an inline string and a number."""
    strings = sorted({cell for row in rows for cell in row if cell})
    cells = lambda r, row: "".join(
        f'<c r="{chr(65 + c)}{r}" t="s"><v>{strings.index(cell)}</v></c>'
        for c, cell in enumerate(row)
        if cell
    )
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    body = "".join(f'<row r="{r}">{cells(r, row)}</row>' for r, row in enumerate(rows, 1))
    extra = '<row><c r="AB9" t="inlineStr"><is><t>in</t></is></c><c r="AC9"><v>7</v></c></row>'
    with zipfile.ZipFile(path, "w") as book:
        texts = "".join(
            "<si><r><t>{}</t></r><r><t>{}</t></r></si>".format(
                *(part.replace("&", "&amp;") for part in (s[:2], s[2:]))
            )
            for s in strings
        )
        book.writestr("xl/sharedStrings.xml", f"<sst {space}>{texts}</sst>")
        book.writestr(
            "xl/worksheets/sheet1.xml",
            f"<worksheet {space}><sheetData>{body}{extra}</sheetData></worksheet>",
        )


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
    folder = write_list(
        tmp_path / "set", rows, ("src_video", "prompt", "id", "edited_caption", "mask")
    )
    tasks = clip_sets.open_set(str(folder), tmp_path)
    assert [task.id for task in tasks] == ["car", "car-2", "my/dog"] and [
        task.instruction for task in tasks
    ] == ["make it red", "make it blue", "a, cat"]
    assert (
        tasks[0].source == folder / "a/car.mp4"
        and tasks[0].mask == folder / "masks/car.png"
        and tasks[1].mask is None
    )
    assert tasks[0].edited_caption == "a red car" and tasks[0].where == "instructions.csv row 2"
    assert clip_sets.open_set(str(folder / clip_sets.LIST), tmp_path) == tasks
    (tmp_path / "list.jsonl").write_text('{"video": "x.mp4", "instruction": "go"}\n')
    assert (
        clip_sets.open_set(str(tmp_path / "list.jsonl"), tmp_path)[0].source == tmp_path / "x.mp4"
    )


@pytest.mark.parametrize("name", clip_sets.PAPER_SETS)
def test_the_papers_names_are_folders(tmp_path, name):
    write_list(tmp_path / name, [["a.mp4", "go"]])
    assert [task.id for task in clip_sets.open_set(name, tmp_path)] == ["a"]
    with pytest.raises(
        UserError,
        match=f"--data {name}: .*is no folder; put its clips and instructions.csv there, or name another --root",
    ):
        clip_sets.open_set(name, tmp_path / "elsewhere")


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_loveu_tgve_2023(tgve, ending):
    table = tgve / f"LOVEU-TGVE-2023_Dataset.{ending}"
    if ending == "xlsx":
        xlsx(table, [HEAD, *ROWS])
        assert clip_sets.xlsx_rows(table)[-1] == [""] * 27 + ["in", "7"]
    else:
        with open(table, "w", newline="") as file:
            csv.writer(file).writerows([HEAD, *ROWS])
    tasks = clip_sets.open_set(str(tgve), tgve)
    assert [task.id for task in tasks] == [
        f"DAVIS_480p/stunt/{edit}" for edit in clip_sets.TGVE_EDITS
    ] + [f"videvo_480p/cat/{edit}" for edit in ("style", "object", "background")]
    assert (
        tasks[0].source == tgve / "DAVIS_480p/480p_frames/stunt"
        and tasks[4].source == tgve / "videvo_480p/480p_videos/cat.mp4"
    )
    assert (
        tasks[4].source_caption,
        tasks[4].edited_caption,
        tasks[4].instruction,
        tasks[4].edit_type,
    ) == ("a cat", "a cat & oil", "a cat & oil", "style")


def test_edits_are_found(tmp_path):
    (tmp_path / "DAVIS_480p" / "stunt" / "style").mkdir(parents=True)
    (tmp_path / "car.mp4").touch()
    assert (
        clip_sets.find_edited(tmp_path, "DAVIS_480p/stunt/style").is_dir()
        and clip_sets.find_edited(tmp_path, "car") == tmp_path / "car.mp4"
    )
    (tmp_path / "car.gif").touch()
    with pytest.raises(UserError, match="2 edited clips, car.mp4 and car.gif"):
        clip_sets.find_edited(tmp_path, "car")
    with pytest.raises(
        UserError, match="no edited clip: .*dog is neither a folder of frames nor a file"
    ):
        clip_sets.find_edited(tmp_path, "dog")


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ([["a.mp4", ""]], ("video", "instruction"), r"row 2 has no instruction \(or prompt\)"),
        ([["a.mp4"]], ("clip",), r"row 2 has no video \(or src_video\), instruction"),
        ([], ("video", "instruction"), "lists no clip"),
        (
            [["a.mp4", "x", "i"], ["b.mp4", "x", "i"]],
            ("video", "instruction", "id"),
            "the id 'i' is there 2 times",
        ),
        ([["a.mp4", "x", "../i"]], ("video", "instruction", "id"), "'../i' is no relative path"),
        ([["a.mp4", "x", "/i"]], ("video", "instruction", "id"), "'/i' is no relative path"),
    ],
)
def test_bad_lists_are_named(tmp_path, rows, head, message):
    with pytest.raises(UserError, match=message):
        clip_sets.open_set(str(write_list(tmp_path, rows, head)), tmp_path)


def test_other_things_are_no_sets(tgve):
    with pytest.raises(
        UserError, match="no such file or folder, and not one of these: 'shapes', a list"
    ):
        clip_sets.open_set("nowhere", tgve)
    with pytest.raises(UserError, match="is not one of these"):
        clip_sets.open_set(str(tgve), tgve)
    table = tgve / "LOVEU-TGVE_2023_data.xlsx"
    table.write_text("no zip")
    with pytest.raises(UserError, match="is not a spreadsheet that can be read .*; save it as CSV"):
        clip_sets.open_set(str(tgve), tgve)
    xlsx(table, [HEAD[:3], *ROWS])
    with pytest.raises(UserError, match="has no column 'Object Change Caption', 'Background"):
        clip_sets.open_set(str(tgve), tgve)
    xlsx(table, [HEAD, ["lost", "a", "b", "c", "d", "e"]])
    with pytest.raises(UserError, match="row 2: lost is neither in 480p_frames nor in 480p_videos"):
        clip_sets.open_set(str(tgve), tgve)
    xlsx(table, [HEAD, *ROWS, ["lost", "a", "b", "c", "d", "e"]])
    tasks = clip_sets.open_set(str(tgve), tgve)
    assert len(tasks) == 11 and [task.id for task in tasks if not task.source.exists()] == [
        f"videvo_480p/lost/{edit}" for edit in clip_sets.TGVE_EDITS
    ]


def test_a_long_list_is_checked_in_little_time(tmp_path):
    begin = time.process_time()
    tasks = [clip_sets.EvaluationTask(str(i), tmp_path, "go") for i in range(20_000)]
    assert clip_sets.checked(tasks, tmp_path) is tasks and time.process_time() - begin < 1
