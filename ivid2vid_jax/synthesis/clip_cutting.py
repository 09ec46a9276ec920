"""Cuts videos into clips of one shot each: long and large enough, with motion, no duplicates."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.manifest import ACCEPTED, FAILED, REJECTED, Outcome
from ivid2vid_jax.synthesis.workspace import write_array
from ivid2vid_jax.utils.versions import install_command
from ivid2vid_jax.video.fit import resize
from ivid2vid_jax.video.read import ANIMATIONS, open_clip
from ivid2vid_jax.weights.pipeline_folder import file_sha256

SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", *ANIMATIONS)
THUMBNAIL = 32  # pixels per side of the thumbnails that are compared
NEIGHBOURS = 2  # frame changes on either side that a shot boundary is compared with


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """How videos are cut into clips, and which clips are refused."""

    frames: int = 16  # number of frames per clip
    fps: float = 8.0  # frame rate of the clips; videos are resampled to it
    size: int = 256  # pixels per side of a clip: the central square, resized
    least: int = 256  # minimum shorter side of a video in pixels
    per_video: int = 4  # maximum number of clips per video
    # minimum frame change at a shot boundary: mean HSV difference, 0 to 255
    cut: float = 15.0
    # minimum ratio of the change at a shot boundary to the changes around it
    sudden: float = 2.5
    # minimum mean difference of neighbouring frames of a clip, in grey levels
    motion: float = 0.5
    # two clips are near-duplicates if at most so many of their 192 perceptual hash bits differ
    near_duplicate_bits: int = 10


class Piece(NamedTuple):
    """Consecutive frames of one shot, [size, size, 3] each, at most as many as a clip has."""

    shot: int
    start: int
    frames: list[np.ndarray]


def videos(folder: Path) -> dict[str, Path]:
    """Id -> file of the videos under a folder; the id is the path relative to the folder.

    Raises UserError if there is no such folder or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder")
    paths = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() in SUFFIXES
    }
    if not paths:
        raise UserError(f"--videos {folder}: holds no video ({', '.join(SUFFIXES)})")
    return paths


def cut_video(path: Path, name: str, config: ClipsConfig, output: Path) -> Outcome:
    """Writes the clips of a video to output/<clip id>.npy.

    Returns the outcome for the manifest: its clips, and the refused pieces with the reasons. Raises
    UserError if PySceneDetect is not installed.
    """
    check_scenedetect()
    clips: list[dict] = []
    refused: list[dict] = []
    facts = {"sha256": file_sha256(path), "clips": clips, "refused": refused}
    try:
        video = open_clip(path, fps=config.fps)
        if min(video.height, video.width) < config.least:
            reason = (
                f"{video.width}x{video.height} pixels: the shorter side is below {config.least}"
            )
            return REJECTED, facts | {"reason": reason}
        for piece in pieces((frame.pixels for frame in video.frames()), config):
            if len(clips) == config.per_video:
                break
            measured, reason = examine(piece, config)
            if reason:
                refused.append({"shot": piece.shot, "start": piece.start, "reason": reason})
                refused[-1] |= measured
                continue
            id = f"{file_name(name)}-{len(clips)}"
            write_array(output / f"{id}.npy", np.stack(piece.frames))
            clips.append({"shot": piece.shot, "start": piece.start, "id": id} | measured)
    except UserError as error:
        return REJECTED, facts | {"reason": str(error)}
    except OSError as error:
        return FAILED, facts | {"reason": str(error)}
    if not clips:
        reasons = dict.fromkeys(piece["reason"] for piece in refused)
        return REJECTED, facts | {"reason": "; ".join(reasons) or "no frame"}
    return ACCEPTED, facts


def check_scenedetect() -> None:
    """Raises UserError if PySceneDetect is not installed."""
    try:
        import scenedetect  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"cutting videos needs PySceneDetect ({error}): {install_command('synthesis')}"
        ) from error


def examine(piece: Piece, config: ClipsConfig) -> tuple[dict, str]:
    """Returns what was measured of a piece, and why it is no clip ("" if it is one)."""
    if len(piece.frames) < config.frames:
        return {}, f"the shot ends after {len(piece.frames)} of {config.frames} frames"
    thumbnails = np.stack([thumbnail(frame) for frame in piece.frames]).astype(np.float32)
    motion = float(np.abs(np.diff(thumbnails, axis=0)).mean())
    if motion < config.motion:
        return {"motion": round(motion, 3)}, "nothing moves"
    return {"motion": round(motion, 3), "fingerprint": perceptual_hash(thumbnails)}, ""


def file_name(id: str) -> str:
    """A video's id, which is a path, as a file name; unique per id."""
    return id.replace("%", "%25").replace("/", "%2F")


def pieces(frames: Iterable[np.ndarray], config: ClipsConfig) -> Iterator[Piece]:
    """Splits every shot into pieces of `config.frames` frames; the last one may be shorter."""
    shot = start = 0
    piece: list[np.ndarray] = []
    for number, (frame, is_first) in enumerate(shots(frames, config)):
        if piece and (is_first or len(piece) == config.frames):
            yield Piece(shot, start, piece)
            piece = []
        if is_first and number:
            shot += 1
        if not piece:
            start = number
        piece.append(resize(central_square(frame), (config.size, config.size)))
    if piece:
        yield Piece(shot, start, piece)


def shots(frames: Iterable[np.ndarray], config: ClipsConfig) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields each frame and whether a shot begins with it, by PySceneDetect's adaptive detector.

    The detector compares a frame's change with the mean change of the NEIGHBOURS frames before and
    after it. It answers NEIGHBOURS frames late, and not at all for as many frames at both ends of a
    video. With mirrored ends it finds most boundaries there, too, and none in steady motion.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(
        adaptive_threshold=config.sudden,
        min_content_val=config.cut,
        window_width=NEIGHBOURS,
        min_scene_len=1,
    )
    recent: deque[np.ndarray] = deque(maxlen=NEIGHBOURS + 1)
    for number, frame in enumerate(mirror_ends(frames, NEIGHBOURS)):
        recent.append(frame)
        bgr = np.ascontiguousarray(thumbnail(frame)[..., ::-1])
        timecode = FrameTimecode(number, fps=10.0)  # any rate: only the number counts
        boundary = detector.process_frame(timecode, bgr)
        if number >= 2 * NEIGHBOURS:
            yield recent[0], bool(boundary) or number == 2 * NEIGHBOURS


def mirror_ends(frames: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Pads with the `count` frames next to the first and the last one, as numpy's "reflect"."""
    frames = iter(frames)
    head = list(itertools.islice(frames, count + 1))
    if not head:
        return
    yield from (head[min(i, len(head) - 1)] for i in range(count, 0, -1))
    tail: deque[np.ndarray] = deque(maxlen=count + 1)
    for frame in itertools.chain(head, frames):
        tail.append(frame)
        yield frame
    yield from (tail[max(-1 - i, -len(tail))] for i in range(1, count + 1))


def central_square(frame: np.ndarray) -> np.ndarray:
    """The largest square in the middle of a frame [H, W, 3]."""
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return frame[top : top + side, left : left + side]


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """The frame averaged to [THUMBNAIL, THUMBNAIL, 3] uint8."""
    size = (THUMBNAIL, THUMBNAIL)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def perceptual_hash(thumbnails: np.ndarray) -> str:
    """The dHash of the first, the middle and the last thumbnail: 192 bits, in hexadecimal.

    A bit says whether brightness grows between two horizontal neighbours of 8 x 9 cells.
    """
    bits = []
    for image in (thumbnails[0], thumbnails[len(thumbnails) // 2], thumbnails[-1]):
        grey = np.asarray(Image.fromarray(image.mean(-1)).resize((9, 8), Image.Resampling.BOX))
        bits.append((grey[:, 1:] > grey[:, :-1]).ravel())
    return np.packbits(np.concatenate(bits)).tobytes().hex()


def near_duplicates(lines: Iterable[dict], config: ClipsConfig) -> tuple[list[str], dict[str, str]]:
    """Splits the clips of accepted videos into unique ones and near-duplicates.

    Args:
        lines: manifest lines of the videos; of several similar clips the first one is unique.
        config: its `near_duplicate_bits` is the largest Hamming distance of near-duplicates.

    Returns:
        The ids of the unique clips, and near-duplicate id -> id of the first unique clip like it.
    """
    clips = [clip for line in lines for clip in line["clips"]]
    hashes = np.frombuffer(
        bytes.fromhex("".join(clip["fingerprint"] for clip in clips)), np.uint64
    ).reshape(-1, 3)
    unique: list[str] = []
    unique_hashes = np.empty_like(hashes)  # the first len(unique) rows are set
    duplicates: dict[str, str] = {}
    for clip, bits in zip(clips, hashes, strict=True):
        distances = np.bitwise_count(unique_hashes[: len(unique)] ^ bits[None]).sum(axis=1)
        near = distances <= config.near_duplicate_bits
        if near.any():
            duplicates[clip["id"]] = unique[near.argmax()]
        else:
            unique_hashes[len(unique)] = bits
            unique.append(clip["id"])
    return unique, duplicates
