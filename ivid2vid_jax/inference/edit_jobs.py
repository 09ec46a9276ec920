"""Several edits in one command: clips x instructions x seeds, or the rows of a list."""

import dataclasses
import glob
import itertools
import re
from pathlib import Path

from ivid2vid_jax import assets
from ivid2vid_jax.data import lists
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.images import STILLS, natural_key

DEFAULT_OUTPUT = Path("edited.mp4")
DEFAULT_FOLDER = Path("edited")
LIST_COLUMNS = ("video", "instruction", "seed", "output")
# Endings by which clips are found in a folder; a named file is known by its content.
CLIP_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".3gp", ".wmv"),
    *(".flv", ".gif", ".webp", ".apng"),
)


@dataclasses.dataclass(frozen=True)
class EditJob:
    """One edit."""

    video: Path
    instruction: str
    seed: int
    output: Path


def plan_jobs(
    videos: tuple[Path, ...],
    instructions: tuple[str, ...],
    seeds: tuple[int, ...],
    output: Path | None,
    edit_list: Path | None = None,
) -> list[EditJob]:
    """The edits of a command line.

    One edit is written to `output`, several into the folder `output`.

    Args:
        videos: see `expand_clips`.
        instructions: of each clip.
        seeds: of each clip and instruction.
        output: a file, or a folder for several edits or frames; None means edited.mp4 or edited/.
        edit_list: a list instead of videos and instructions; see `read_edit_list`.

    Raises:
        UserError: no instruction, a clip or list that is not there, or a file as the output of
            several edits.
    """
    if edit_list:
        if videos or instructions:
            raise UserError("--edit-list has its own clips and instructions; leave the others out")
        rows = read_edit_list(edit_list)
    else:
        if not instructions:
            raise UserError('say what to change: --instruction "make it snow"')
        clips = expand_clips(videos)
        rows = [
            {"video": str(video), "instruction": instruction, "seed": str(seed)}
            for video, instruction, seed in itertools.product(clips, instructions, seeds)
        ]
    if len(rows) > 1 and output is not None and output.suffix:
        raise UserError(
            f"--output {output}: is one file, but there are {len(rows)} edits; name a folder"
        )
    jobs: list[EditJob] = []
    for row in rows:
        video = assets.clip(Path(row["video"]) if row.get("video") else None)
        seed = parse_seed(row.get("seed") or str(seeds[0]))
        if row.get("output"):
            target = Path(row["output"])
        elif len(rows) == 1:
            target = output or DEFAULT_OUTPUT
        else:
            taken = {job.output for job in jobs}
            target = (output or DEFAULT_FOLDER) / file_name(video, row["instruction"], seed, taken)
        jobs.append(EditJob(video, row["instruction"], seed, target))
    return jobs


def parse_seed(text: str) -> int:
    """A seed; UserError if it is no whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"seed {text!r} is not a whole number") from error


def file_name(video: Path, instruction: str, seed: int, taken: set[Path]) -> str:
    """The file name of one of several edits, e.g. "skiing_make-it-snow_0.mp4"."""
    words = "-".join(re.findall(r"\w+", instruction.lower()))[:40]
    suffix = ".png" if video.suffix.lower() in STILLS else ".mp4"
    name = f"{video.stem[:60]}_{words}_{seed}"
    candidates = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    names = {path.stem for path in taken}
    return next(name for name in candidates if name not in names) + suffix


def expand_clips(paths: tuple[Path, ...]) -> list[Path]:
    """The clips that the paths name; no path means the first embedded clip.

    A path is a clip, a folder of frames, the name of an embedded clip, a folder of clips, or a
    pattern such as "clips/*.mp4". Raises UserError for a pattern that matches nothing, for a
    name that is no embedded clip's, and for a folder that mixes videos and images.
    """
    return [clip for path in paths or (None,) for clip in expand_path(path)]


def expand_path(path: Path | None) -> list[Path]:
    """The clips that one path names, in natural order."""
    clip = assets.clip(path)
    if clip.is_dir():
        return folder_clips(clip)
    if not clip.exists() and not clip.suffix and len(clip.parts) == 1 and clip.name.isalpha():
        raise UserError(
            f"{clip}: no such file, nor one of the embedded clips {', '.join(assets.clips())}"
        )
    if clip.exists() or not any(sign in str(clip) for sign in "*?["):
        return [clip]
    matches = [Path(name) for name in glob.glob(str(clip), recursive=True)]  # noqa: PTH207
    if not matches:
        raise UserError(f"{clip}: no file matches this pattern")
    return sorted(matches, key=natural_key)


def folder_clips(folder: Path) -> list[Path]:
    """The clips in a folder, or the folder itself if it holds frames; UserError for a mixture."""
    files = sorted((file for file in folder.iterdir() if file.name[0] != "."), key=natural_key)
    images = [file for file in files if file.suffix.lower() in STILLS]
    clips = [file for file in files if file.suffix.lower() in CLIP_SUFFIXES]
    videos = [file for file in clips if file not in images]  # a .webp may be either
    if images and videos:
        raise UserError(
            f"{folder}: holds both videos ({len(videos)}) and images ({len(images)}). A folder of "
            f"images is one clip; name the files of one kind, e.g. {folder}/*{videos[0].suffix}"
        )
    return [folder] if images else clips or [folder]


def read_edit_list(path: Path) -> list[dict[str, str]]:
    """The rows of a list of edits: CSV with a header, JSON lines or a JSON list.

    A row has an `instruction`, and may have a `video`, `seed` and `output`; paths are relative to
    the list. Raises UserError for a list that cannot be read, and for other columns.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such list of edits")
    is_json = path.suffix.lower() in (".json", ".jsonl")
    rows = []
    for where, cells in (lists.read_json if is_json else lists.read_csv)(path):
        row = {name: str(value) for name, value in cells.items() if value not in (None, "")}
        if not row.get("instruction") or row.keys() - set(LIST_COLUMNS):
            raise UserError(
                f"{path}: {where} has the columns {', '.join(row)}; it needs instruction, and may "
                "have video, seed, output"
            )
        for name in ("video", "output"):
            if row.get(name) and not (name == "video" and row[name] in assets.clips()):
                row[name] = str(path.parent / row[name])
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no edits")
    return rows
