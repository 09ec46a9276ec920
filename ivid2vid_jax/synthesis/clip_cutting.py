"""Clips for the data engine, cut from videos: no shot boundary inside, long and large enough, something moves, no two alike."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ivid2vid_jax.synthesis.manifest import ACCEPTED, FAILED, REJECTED
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.video.fit import resize
from ivid2vid_jax.video.read import ANIMATIONS, open_clip
from ivid2vid_jax.weights.pipeline_folder import file_sha256

THUMB = 32  # pixels of a side of the thumbnails that are compared
AROUND = 8  # steps before and after one, whose median says how fast the shot moves


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """What makes a clip."""

    frames: int = 16  # of a clip
    fps: float = 8.0  # of a clip; videos are resampled to it
    size: int = 256  # pixels of the square that is cut from the middle and resized
    least: int = 256  # pixels of the shorter side below which a video is refused
    per_video: int = 4  # most clips of one video
    cut: float = (
        15.0  # mean grey levels between two thumbnails from which on they may belong to two shots,
    )
    sudden: float = 2.5  # if that is so many times what is usual before them, and after
    motion: float = 0.5  # least mean grey levels between neighbouring thumbnails of a clip
    near_duplicate_bits: int = (
        10  # most bits, of 192, in which two clips' fingerprints differ that are the same scene
    )


def videos(folder: Path) -> dict[str, Path]:
    """Id -> file of the videos under a folder; the id is the path below it. Raises UserError for a folder that holds none."""
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder")
    found = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() in VIDEOS
    }
    if not found:
        raise UserError(f"--videos {folder}: holds no video ({', '.join(VIDEOS)})")
    return found


VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", *ANIMATIONS)


def cut_video(path: Path, name: str, config: ClipsConfig, output: Path) -> tuple[str, dict]:
    """(status, facts) of one video for its manifest: its clips, written to output/<clip id>.npy, and what was refused and why."""
    facts = {"sha256": file_sha256(path), "clips": [], "refused": []}
    try:
        video = open_clip(path, fps=config.fps)
        if min(video.height, video.width) < config.least:
            return REJECTED, facts | {
                "reason": f"{video.width}x{video.height} pixels: the shorter side is below {config.least}"
            }
        for shot, start, frames in pieces((frame.pixels for frame in video.frames()), config):
            if len(facts["clips"]) == config.per_video:
                break
            place = {"shot": shot, "start": start}
            if len(frames) < config.frames:
                facts["refused"].append(
                    place
                    | {"reason": f"the shot ends after {len(frames)} of {config.frames} frames"}
                )
                continue
            thumbs = np.stack([thumbnail(frame) for frame in frames])
            motion = float(np.abs(np.diff(thumbs, axis=0)).mean())
            if motion < config.motion:
                facts["refused"].append(
                    place | {"reason": "nothing moves", "motion": round(motion, 3)}
                )
                continue
            id = f"{file_name(name)}-{len(facts['clips'])}"
            write(output / f"{id}.npy", np.stack(frames))
            facts["clips"].append(
                place | {"id": id, "motion": round(motion, 3), "fingerprint": fingerprint(thumbs)}
            )
    except UserError as error:
        return REJECTED, facts | {"reason": str(error)}
    except OSError as error:
        return FAILED, facts | {"reason": str(error)}
    if not facts["clips"]:
        return REJECTED, facts | {
            "reason": "; ".join(dict.fromkeys(each["reason"] for each in facts["refused"]))
            or "no frame"
        }
    return ACCEPTED, facts


def file_name(id: str) -> str:
    """A video's id, a path with its suffix, as the name of a file: another for every id."""
    return id.replace("%", "%25").replace("/", "%2F")


def pieces(
    frames: Iterable[np.ndarray], config: ClipsConfig
) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """(number of the shot, first frame, squares [size, size, 3]) of the pieces of at most `frames` frames that each shot falls into."""
    shot = start = 0
    piece: list[np.ndarray] = []
    for number, (frame, begins) in enumerate(shots(frames, config)):
        if piece and (begins or len(piece) == config.frames):
            yield shot, start, piece
            piece = []
        if begins and number:
            shot += 1
        if not piece:
            start = number
        piece.append(resize(middle_square(frame), (config.size, config.size)))
    if piece:
        yield shot, start, piece


def shots(frames: Iterable[np.ndarray], config: ClipsConfig) -> Iterator[tuple[np.ndarray, bool]]:
    """(frame, whether a shot begins with it). A cut is a step between frames that is large, and much larger than the steps around it."""
    waiting: deque = (
        deque()
    )  # (frame, step to it) not yet told, AROUND of them behind the one in question
    past: deque = deque(maxlen=AROUND)
    before = None

    def told():
        frame, step = waiting.popleft()
        usual = max(
            float(np.median(side)) if side else 0.0
            for side in (past, [later for _, later in waiting])
        )
        begins = step is None or (step >= config.cut and step >= config.sudden * usual)
        if step is not None:
            past.append(step)
        return frame, begins

    for frame in frames:
        thumb = thumbnail(frame)
        waiting.append((frame, None if before is None else float(np.abs(thumb - before).mean())))
        before = thumb
        if len(waiting) > AROUND:
            yield told()
    while waiting:
        yield told()


def middle_square(frame: np.ndarray) -> np.ndarray:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return frame[top : top + side, left : left + side]


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """[THUMB, THUMB, 3] float32, the frame averaged."""
    return np.asarray(
        Image.fromarray(frame).resize((THUMB, THUMB), Image.Resampling.BOX), np.float32
    )


def fingerprint(thumbs: np.ndarray) -> str:
    """192 bits, as hexadecimal: whether neighbours among 8 x 9 cells grow brighter (dHash), of the first, the middle and the last thumbnail."""
    bits = []
    for thumb in (thumbs[0], thumbs[len(thumbs) // 2], thumbs[-1]):
        grey = np.asarray(Image.fromarray(thumb.mean(-1)).resize((9, 8), Image.Resampling.BOX))
        bits.append((grey[:, 1:] > grey[:, :-1]).ravel())
    return np.packbits(np.concatenate(bits)).tobytes().hex()


def near_duplicates(lines: Iterable[dict], config: ClipsConfig) -> tuple[list[str], dict[str, str]]:
    """(ids of the clips of accepted videos that are kept, id -> the kept clip it repeats, the first of them).

    In the order of the lines, so it is the same at every start.
    """
    clips, kept, repeats = [clip for line in lines for clip in line["clips"]], [], {}
    marks = np.frombuffer(
        bytes.fromhex("".join(clip["fingerprint"] for clip in clips)), np.uint64
    ).reshape(-1, 3)
    seen = np.empty_like(marks)  # of those that are kept
    for clip, mark in zip(clips, marks, strict=True):
        near = (
            np.bitwise_count(seen[: len(kept)] ^ mark[None]).sum(axis=1)
            <= config.near_duplicate_bits
        )
        if near.any():
            repeats[clip["id"]] = kept[near.argmax()]
        else:
            seen[len(kept)] = mark
            kept.append(clip["id"])
    return kept, repeats


def write(path: Path, array: np.ndarray) -> None:
    """An .npy file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)
