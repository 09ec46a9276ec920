"""Safetensors files: one file or shards with an index, with or without a variant ("fp16")."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp  # registers bfloat16 with numpy, which safetensors needs to read it
import numpy as np
from safetensors import SafetensorError, safe_open

from ivid2vid_jax.errors import UserError
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


class LazyTensor(NamedTuple):
    """A tensor in a file, in PyTorch's layout; `read()` loads its values."""

    name: str  # key in the file
    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' code: F32, F16, BF16, ...
    read: Callable[[], np.ndarray]

    def map(
        self, shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]
    ) -> "LazyTensor":
        """Applies a function to the values when they are read; shape: that of the result."""
        return self._replace(shape=shape, read=lambda: function(self.read()))


def find_files(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """Finds a component's safetensors files: `stem[.variant].safetensors`, or the index's shards.

    Without `variant` the plain files are preferred; fp16 files are used if there are no others.
    Raises UserError if there are none; the message lists what the folder contains.
    """
    for candidate in [variant] if variant else [None, "fp16"]:
        infix = f".{candidate}" if candidate else ""
        single_file = folder / f"{stem}{infix}.safetensors"
        if single_file.is_file():
            return [single_file]
        for index in (
            folder / f"{stem}.safetensors.index{infix}.json",
            folder / f"{stem}{infix}.safetensors.index.json",
        ):
            if index.is_file():
                return shard_paths(index)
    if folder.is_dir():
        content = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    else:
        content = "no such folder"
    name = f"{stem}{'.' + variant if variant else ''}.safetensors"
    raise UserError(
        f"{folder}: no {name}, in one file or in shards (the folder contains: {content}); "
        "download the model's safetensors files"
    )


def shard_paths(index: Path) -> list[Path]:
    """The shards that an index file names, in the index's folder; UserError if one is missing."""
    names = sorted(set(read_json(index)["weight_map"].values()))
    paths = [index.parent / name for name in names]
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise UserError(f"{index}: names the shard {path.name}, which is not in {index.parent}")
    return paths


def read_headers(paths: list[Path]) -> dict[str, LazyTensor]:
    """Reads the headers of the files: name -> tensor. UserError for a file that is damaged."""
    tensors = {}
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is not iterable)
                    header = file.get_slice(name)
                    tensors[name] = LazyTensor(
                        name,
                        path,
                        tuple(header.get_shape()),
                        header.get_dtype(),
                        partial(read_tensor, path, name),
                    )
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: is not a whole safetensors file ({error}); download it again"
            ) from error
    return tensors


def read_tensor(path: Path, name: str) -> np.ndarray:
    """Reads a copy of one tensor.

    The file is opened for each tensor, so that its mapped pages never add up to a second copy of
    the weights in memory.
    """
    with safe_open(path, "np") as file:
        return file.get_tensor(name)


def write_safetensors(
    path: Path,
    tensors: Iterable[np.ndarray],
    headers: dict[str, tuple[tuple[int, ...], np.dtype]],
) -> None:
    """Writes a safetensors file one tensor at a time.

    safetensors' own writers need all tensors in memory at once.

    Args:
        path: the new file.
        tensors: arrays in the order of `headers`.
        headers: name -> (shape, dtype), in the order of the file.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in headers.items():
        end = offset + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": CODES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header_bytes = json.dumps(header, separators=(",", ":")).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    with path.open("wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        for (name, (shape, dtype)), array in zip(headers.items(), tensors, strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name}: announced {dtype}{shape}, got {array.dtype}{array.shape}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
