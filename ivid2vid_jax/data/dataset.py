"""Triplets on disk: a tfds dataset in array_record, its clips kept encoded, read at random without TensorFlow.

triplets = open_dataset("data/shapes", "train")
triplets[7].instruction
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from ivid2vid_jax.data.shards import ARGUMENTS
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.utils.errors import UserError

CODECS = ("npy", "mp4")
CLIPS = ("source", "edited", "mask")  # stored as bytes
NPY, MATROSKA = b"\x93NUMPY", b"\x1aE\xdf\xa3"
# One thread: x264 writes the number into its bytes, and workers fill the cores. Without the tree: video/write.py, SAME_BYTES.
X264 = {"crf": "12", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}


class DamagedClip(UserError):
    """Bytes that no clip can be decoded from; the message says why."""


def features() -> tfds.features.FeaturesDict:
    """What a triplet's record holds. source, edited: encoded clips. mask: .npy bytes of a bool [T, H, W], or empty."""
    text = (
        "id",
        "instruction",
        "source_caption",
        "edited_caption",
        "edit_type",
        "licence",
        "provenance",
    )
    columns = {name: tfds.features.Text() for name in text} | {
        name: tfds.features.Scalar(np.bytes_) for name in CLIPS
    }
    return tfds.features.FeaturesDict(columns | {"fps": tfds.features.Scalar(np.float32)})


def to_record(triplet: Triplet, codec: str) -> dict:
    """The triplet as `features` want it, its clips encoded."""
    clips = {
        "source": encode_clip(triplet.source, codec),
        "edited": encode_clip(triplet.edited, codec),
    }
    return {**vars(triplet), **clips, "mask": b"" if triplet.mask is None else to_npy(triplet.mask)}


def from_record(record: dict) -> Triplet:
    """The inverse of `to_record`; DamagedClip names the triplet and which of its clips cannot be decoded."""
    texts = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in record.items()
        if name not in CLIPS
    }
    decoded = {}
    for name in ("source", "edited"):
        try:
            decoded[name] = decode_clip(record[name])
        except DamagedClip as error:
            raise DamagedClip(f"triplet {texts['id']}: {name}: {error}") from error
    mask = from_npy(record["mask"]) if record["mask"] else None
    return Triplet(**{**texts, **decoded, "fps": float(texts["fps"]), "mask": mask})


# ---- encoded clips ----


def encode_clip(frames: np.ndarray, codec: str) -> bytes:
    """[T, H, W, 3] uint8 to bytes that say what they are. npy: exact. mp4: H.264 with full chroma (so odd sizes are kept), about 45 dB.

    The rate is not in them: a triplet's `fps` is its clips' rate.
    """
    if codec not in CODECS:
        raise UserError(f"codec {codec!r} is none of {', '.join(CODECS)}")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"a clip is [T, H, W, 3] uint8, not {frames.dtype}{list(frames.shape)}")
    return to_npy(frames) if codec == "npy" else to_mp4(frames)


def decode_clip(data: bytes, indices: Sequence[int] | None = None) -> np.ndarray:
    """Bytes of .npy, mp4, webm or one image (told by their first bytes) to [T, H, W, 3] uint8, all frames or those at `indices`.

    Raises DamagedClip for anything else or less, IndexError for a frame that the clip does not have.
    """
    if data[:6] == NPY:
        frames = from_npy(data)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise DamagedClip(
                f"holds {frames.dtype}{list(frames.shape)}, not a clip [T, H, W, 3] uint8"
            )
    elif data[4:8] == b"ftyp" or data[:4] == MATROSKA:
        return from_video(data, indices)
    elif (
        data[:8] == b"\x89PNG\r\n\x1a\n"
        or data[:3] == b"\xff\xd8\xff"
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    ):
        frames = from_image(data)
    else:
        raise DamagedClip(
            f"{len(data)} bytes that are no npy, mp4, webm, png, jpg or webp (they begin {bytes(data[:8])!r})"
        )
    return frames if indices is None else frames[list(indices)]


def to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


PLAIN_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][a-z]\d+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)


def from_npy(data: bytes) -> np.ndarray:
    """The array of a .npy file's bytes; DamagedClip for what is none.

    What `to_npy` writes is read without numpy's own reader, which parses the header as Python: seven times slower, and in threads of Python 3.11.7
    it failed after half a million reads ("SystemError: AST constructor recursion depth mismatch").
    """
    try:
        if plain := PLAIN_NPY.match(data):
            shape = tuple(int(side) for side in plain[2].split(b",") if side.strip())
            return (
                np.frombuffer(data, np.dtype(plain[1].decode()), offset=plain.end())
                .reshape(shape)
                .copy()
            )
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, TypeError, EOFError, SyntaxError) as error:
        raise DamagedClip(f"a damaged .npy ({error})") from error


def from_image(data: bytes) -> np.ndarray:
    from PIL import (
        Image,  # here and not above: a bare accelerator machine reads npy clips without it
    )

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedClip(f"a damaged image ({error})") from error


def to_mp4(frames: np.ndarray) -> bytes:
    import av  # here and not above: a bare accelerator machine has none and reads npy clips

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=8, options=X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for pixels in frames:
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                )
            )
        out.mux(stream.encode())
    return buffer.getvalue()


def from_video(data: bytes, indices: Sequence[int] | None) -> np.ndarray:
    """The frames wanted, upright; nothing after the last of them is decoded."""
    import av

    wanted = None if indices is None else set(indices)
    frames, count = {}, 0
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                if wanted is None or count in wanted:
                    frames[count] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                count += 1
                if wanted is not None and len(frames) == len(wanted):
                    break
            announced = stream.frames
    except (av.error.FFmpegError, IndexError) as error:
        raise DamagedClip(f"a damaged video, {count} frames could be decoded ({error})") from error
    if not count or (wanted is None and count < announced):
        raise DamagedClip(
            f"a damaged video: announces {announced} frames, {count} could be decoded"
        )
    if wanted is not None and wanted - set(frames):
        raise IndexError(f"the clip has {count} frames, not number {max(wanted - set(frames))}")
    return np.stack([frames[i] for i in (sorted(frames) if indices is None else indices)])


def clip_length(data: bytes) -> int:
    """How many frames an encoded clip has, from its header where that says so."""
    if data[:6] == NPY:
        return len(from_npy(data))
    if data[4:8] == b"ftyp":
        import av

        try:
            with av.open(io.BytesIO(data)) as container:
                announced = container.streams.video[0].frames
        except (av.error.FFmpegError, IndexError) as error:
            raise DamagedClip(f"a damaged video ({error})") from error
        if announced:
            return announced
    return len(decode_clip(data))


# ---- reading ----


class Dataset:
    """Triplets by number: `len(triplets)`, `triplets[i]`. Opens no shard before it is read from, and travels to worker processes."""

    def __init__(self, path: Path, split: str, records, splits: tuple[str, ...] = ()):
        self.path, self.split, self.records, self.splits = path, split, records, splits

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Triplet:
        """The i-th triplet, decoded. Raises DamagedClip, IndexError, and UserError where the shard cannot be read."""
        return from_record(self.record(i))

    def record(self, i: int) -> dict:
        """The i-th triplet as stored, its clips still encoded: with `decode_clip(..., indices)` for a few frames of a long clip."""
        if not 0 <= i < len(self):
            raise IndexError(
                f"{self.path}: split {self.split} has {len(self)} triplets, not number {i}"
            )
        try:
            return self.records[i]
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"{self.path}: triplet {i} of {self.split} cannot be read ({error}); the shard is damaged, prepare it again"
            ) from error


def open_dataset(path: str | Path, split: str = "train") -> Dataset:
    """Opens a folder that `prepare` wrote; takes the same time for any number of triplets.

    split: a split's name, or a part of one as tfds writes it, "train[:10%]".
    Raises UserError: no such folder, not a dataset or not finished, not triplets, a shard missing, no such split (naming those there are).
    """
    return open_records(Path(path).expanduser(), split, features())


def open_records(path: Path, split: str, wanted: tfds.features.FeaturesDict) -> Dataset:
    """`open_dataset` for records of the wanted features, which `Dataset.record` gives."""
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
    if set(builder.info.features or ()) != set(wanted):
        raise UserError(
            f"{path}: holds {sorted(builder.info.features or ())}, not {sorted(wanted)}"
        )
    try:
        files = builder.info.splits[split].filenames
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: has no split {split!r}, only {', '.join(builder.info.splits)}"
        ) from error
    for file in files:
        if not (path / file).is_file():
            raise UserError(
                f"{path}: the shard {file} is missing; copy it here or prepare the data again"
            )
    return Dataset(path, split, builder.as_data_source(split=split), tuple(builder.info.splits))
