"""Safetensors on disk: whole, sharded with an index, and with a variant ("fp16") in the name."""

import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp  # registers bfloat16 with numpy, which reading a bf16 tensor needs
import numpy as np
from safetensors import SafetensorError, safe_open

from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import read_json

DTYPES = {
    "F32": jnp.float32,
    "F16": jnp.float16,
    "BF16": jnp.bfloat16,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """Where a tensor is stored, and what its header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' code: F32, F16, BF16, ...


def find_files(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of a component: `stem[.variant].safetensors`, or the shards that its index names.

    Without `variant` the plain files are preferred and the fp16 ones are taken where only they exist.
    Raises UserError where there is none, naming what the folder holds instead.
    """
    for v in [variant] if variant else [None, "fp16"]:
        middle = f".{v}" if v else ""
        whole = folder / f"{stem}{middle}.safetensors"
        if whole.is_file():
            return [whole]
        for index in (
            folder / f"{stem}.safetensors.index{middle}.json",
            folder / f"{stem}{middle}.safetensors.index.json",
        ):
            if index.is_file():
                return shards(index)
    held = (
        ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        if folder.is_dir()
        else "no such folder"
    )
    wanted = f"{stem}{'.' + variant if variant else ''}.safetensors"
    raise UserError(
        f"{folder}: no {wanted}, whole or sharded (it holds: {held}); download the safetensors files of this model"
    )


def shards(index: Path) -> list[Path]:
    """The files that an index names, each in the index's own folder; UserError where one is missing."""
    files = sorted(set(read_json(index)["weight_map"].values()))
    paths = [index.parent / name for name in files]
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise UserError(f"{index}: names the shard {path.name}, which is not in {index.parent}")
    return paths


def read_headers(paths: list[Path]) -> dict[str, Entry]:
    """Every tensor of the files by name; reads headers only. UserError for a file that is not safetensors."""
    entries = {}
    for path in paths:
        try:
            with safe_open(path, "np") as f:
                for key in f.keys():
                    view = f.get_slice(key)
                    entries[key] = Entry(path, tuple(view.get_shape()), view.get_dtype())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: is not a whole safetensors file ({error}); download it again"
            ) from error
    return entries


def read_tensor(key: str, entry: Entry) -> np.ndarray:
    """One tensor, copied out. The file is opened for each, so that its mapped pages never add up to a second copy."""
    with safe_open(entry.file, "np") as f:
        return f.get_tensor(key)


def write_safetensors(
    path: Path, tensors, shapes: dict[str, tuple[tuple[int, ...], np.dtype]]
) -> None:
    """Writes a safetensors file tensor by tensor, so that memory holds one tensor at a time.

    shapes: name -> (shape, dtype), in the order of the file. tensors: iterable of arrays in that order.
    (safetensors' own writers want all tensors in memory at once.)
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, (shape, dtype) in shapes.items():
        end = offset + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[key] = {
            "dtype": CODES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for (key, (shape, dtype)), array in zip(shapes.items(), tensors, strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{key}: announced {dtype}{shape}, got {array.dtype}{array.shape}")
            f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
