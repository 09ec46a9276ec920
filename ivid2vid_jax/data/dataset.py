"""Datasets on disk: tfds datasets (array_record) of encoded clips, read without TensorFlow.

triplets = open_dataset("data/shapes", "train")
triplets[7].instruction
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]

from ivid2vid_jax.data.shards import ARGUMENTS
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError

CODECS = ("npy", "mp4")
# Fields of a record that are stored as bytes; the others are text, but for fps.
CLIPS = ("source", "edited", "mask")
TEXTS = (
    *("id", "instruction", "source_caption", "edited_caption"),
    *("edit_type", "licence", "provenance"),
)
NPY_MAGIC, MATROSKA_MAGIC = b"\x93NUMPY", b"\x1aE\xdf\xa3"
# Bytes must not depend on the machine. x264 writes its number of threads into the file, so it is
# fixed to one (worker processes use the other cores). For mbtree=0 see video/write.py.
X264_OPTIONS = {"crf": "12", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}


class DamagedClip(UserError):
    """Bytes that cannot be decoded to a clip; the message says why."""


def features() -> tfds.features.FeaturesDict:
    """Features of a triplet's record.

    source, edited: encoded clips. mask: .npy bytes of a bool [T, H, W], or empty.
    """
    return tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in TEXTS}
        | {name: tfds.features.Scalar(np.bytes_) for name in CLIPS}
        | {"fps": tfds.features.Scalar(np.float32)}
    )


def to_record(triplet: Triplet, codec: str) -> dict[str, Any]:
    """Encodes a triplet for `features`."""
    clips = {
        "source": encode_clip(triplet.source, codec),
        "edited": encode_clip(triplet.edited, codec),
        "mask": b"" if triplet.mask is None else to_npy(triplet.mask),
    }
    return {**vars(triplet), **clips}


def from_record(record: dict[str, Any]) -> Triplet:
    """Decodes a record of `to_record`; DamagedClip names the triplet and the clip at fault."""
    texts = {
        name: record[name].decode() if isinstance(record[name], bytes) else record[name]
        for name in TEXTS
    }
    clips = {}
    for name in ("source", "edited"):
        try:
            clips[name] = decode_clip(record[name])
        except DamagedClip as error:
            raise DamagedClip(f"triplet {texts['id']}: {name}: {error}") from error
    return Triplet(
        source=clips["source"],
        edited=clips["edited"],
        mask=from_npy(record["mask"]) if record["mask"] else None,
        fps=float(record["fps"]),
        **texts,
    )


# ---- encoded clips ----


def encode_clip(frames: np.ndarray, codec: str) -> bytes:
    """Encodes a clip.

    The frame rate is not stored in the bytes: it is the triplet's `fps`.

    Args:
        frames: [T, H, W, 3] uint8.
        codec: "npy" is exact. "mp4" is H.264 without chroma subsampling, about 45 dB, any size.
    """
    if codec not in CODECS:
        raise UserError(f"codec {codec!r} is none of {', '.join(CODECS)}")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"a clip is [T, H, W, 3] uint8, not {frames.dtype}{list(frames.shape)}")
    return to_npy(frames) if codec == "npy" else to_mp4(frames)


def decode_clip(data: bytes, indices: Sequence[int] | None = None) -> np.ndarray:
    """Decodes .npy, mp4, webm or image bytes, recognised by their first bytes.

    Args:
        data: the bytes.
        indices: the frames to return; None = all.

    Returns:
        [T, H, W, 3] uint8; an image is one frame.

    Raises:
        DamagedClip: the bytes cannot be decoded, or end too early.
        IndexError: the clip does not have such a frame.
    """
    if data[:6] == NPY_MAGIC:
        frames = from_npy(data)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            shape = f"{frames.dtype}{list(frames.shape)}"
            raise DamagedClip(f"holds {shape}, not a clip [T, H, W, 3] uint8")
    elif data[4:8] == b"ftyp" or data[:4] == MATROSKA_MAGIC:
        return from_video(data, indices)
    elif is_image(data):
        frames = from_image(data)
    else:
        raise DamagedClip(
            f"{len(data)} bytes that are no npy, mp4, webm, png, jpg or webp "
            f"(first bytes: {bytes(data[:8])!r})"
        )
    return frames if indices is None else frames[list(indices)]


def is_image(data: bytes) -> bool:
    """Whether bytes begin like a PNG, JPEG or WebP file."""
    return (
        data[:8] == b"\x89PNG\r\n\x1a\n"
        or data[:3] == b"\xff\xd8\xff"
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    )


def to_npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


# What `to_npy` writes for C-contiguous arrays of numbers: (dtype, shape).
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][a-z]\d+)', 'fortran_order': False, "
    rb"'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)


def from_npy(data: bytes) -> np.ndarray:
    """Returns the array of a .npy file; DamagedClip if it cannot be read.

    Headers that `to_npy` writes are matched here instead of by `np.load`, which parses them as
    Python source. That is seven times slower, and in threads of Python 3.11.7 it failed once in
    half a million reads ("SystemError: AST constructor recursion depth mismatch").
    """
    try:
        if header := NPY_HEADER.match(data):
            dtype = np.dtype(header[1].decode())
            shape = tuple(int(length) for length in header[2].split(b",") if length.strip())
            return np.frombuffer(data, dtype, offset=header.end()).reshape(shape).copy()
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, TypeError, EOFError, SyntaxError) as error:
        raise DamagedClip(f"a damaged .npy ({error})") from error


def from_image(data: bytes) -> np.ndarray:
    """[1, H, W, 3] uint8 of image bytes; DamagedClip if they cannot be decoded."""
    from PIL import Image  # imported late: reading npy clips needs neither pillow nor av

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedClip(f"a damaged image ({error})") from error


def to_mp4(frames: np.ndarray) -> bytes:
    """H.264 in yuv444p, so that odd sizes and coloured edges survive; see X264_OPTIONS."""
    import av  # imported late, as in `from_image`

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=8, options=X264_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def from_video(data: bytes, indices: Sequence[int] | None) -> np.ndarray:
    """Decodes the frames at `indices` (None = all), upright; stops at the last one needed."""
    import av

    from ivid2vid_jax.video.container import OPTIONS

    needed = None if indices is None else set(indices)
    frames: dict[int, np.ndarray] = {}
    count = 0
    try:
        with av.open(io.BytesIO(data), "r", options=OPTIONS) as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                if needed is None or count in needed:
                    pixels = frame.to_ndarray(format="rgb24")
                    frames[count] = np.rot90(pixels, frame.rotation // 90)
                count += 1
                if needed is not None and len(frames) == len(needed):
                    break
            announced = stream.frames
    except (av.error.FFmpegError, IndexError) as error:
        raise DamagedClip(f"a damaged video, {count} frames could be decoded ({error})") from error
    if not count or (needed is None and count < announced):
        raise DamagedClip(
            f"a damaged video: announces {announced} frames, {count} could be decoded"
        )
    if needed is not None and (missing := needed - set(frames)):
        raise IndexError(f"the clip has {count} frames, not number {max(missing)}")
    return np.stack([frames[i] for i in (sorted(frames) if indices is None else indices)])


def clip_length(data: bytes) -> int:
    """Number of frames of an encoded clip; from its header if that says so."""
    if data[:6] == NPY_MAGIC:
        return len(from_npy(data))
    if data[4:8] == b"ftyp":
        import av

        from ivid2vid_jax.video.container import OPTIONS

        try:
            with av.open(io.BytesIO(data), "r", options=OPTIONS) as container:
                announced = container.streams.video[0].frames
        except (av.error.FFmpegError, IndexError) as error:
            raise DamagedClip(f"a damaged video ({error})") from error
        if announced:
            return announced
    return len(decode_clip(data))


# ---- reading ----


class Dataset:
    """Triplets by index: `len(triplets)`, `triplets[i]`.

    Opens a shard file when it is first read from. Can be pickled.

    Args:
        path: the folder.
        split: the split or part of a split, e.g. "train[:10%]".
        records: its records by index.
        splits: names of all splits of the folder.
    """

    def __init__(
        self, path: Path, split: str, records: Sequence[dict], splits: tuple[str, ...] = ()
    ):
        self.path, self.split, self.records, self.splits = path, split, records, splits

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Triplet:
        """Decodes a triplet; raises DamagedClip, IndexError, or UserError for a damaged shard."""
        return from_record(self.record(i))

    def record(self, i: int) -> dict[str, Any]:
        """Returns a triplet as stored, its clips still encoded.

        With `decode_clip(..., indices)` a few frames of a long clip can be read.
        """
        if not 0 <= i < len(self):
            raise IndexError(
                f"{self.path}: split {self.split} has {len(self)} triplets, not number {i}"
            )
        try:
            return self.records[i]
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"{self.path}: triplet {i} of {self.split} cannot be read ({error}); "
                "the shard is damaged: prepare the data again"
            ) from error


def open_dataset(path: str | Path, split: str = "train") -> Dataset:
    """Opens a folder of `prepare`, in the same time for any number of triplets.

    Args:
        path: the folder.
        split: name of a split, or a part of one in tfds' notation, e.g. "train[:10%]".

    Raises:
        UserError: the folder does not exist, is not a finished dataset of triplets, has no such
            split, or lacks a shard.
    """
    return open_records(Path(path).expanduser(), split, features())


def open_records(path: Path, split: str, expected: tfds.features.FeaturesDict) -> Dataset:
    """Like `open_dataset`, for records of other features; read them with `Dataset.record`."""
    if not path.is_dir():
        raise UserError(f"{path}: no such dataset folder")
    if not (path / "dataset_info.json").is_file():
        if (path / ARGUMENTS).is_file():
            raise UserError(f"{path}: is not finished: run the same prepare again")
        raise UserError(f"{path}: is not a dataset (no dataset_info.json); make one with prepare")
    try:
        builder = tfds.builder_from_directory(path)
    except (ParseError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: its description cannot be read ({error})") from error
    names = set(builder.info.features or ())
    if names != set(expected):
        raise UserError(f"{path}: holds {sorted(names)}, not {sorted(expected)}")
    try:
        files = builder.info.splits[split].filenames
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise UserError(f"{path}: has no split {split!r}, only {known}") from error
    for file in files:
        if not (path / file).is_file():
            raise UserError(
                f"{path}: the shard {file} is missing; copy it here or prepare the data again"
            )
    return Dataset(path, split, builder.as_data_source(split=split), tuple(builder.info.splits))
