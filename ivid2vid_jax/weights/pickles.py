"""Reads PyTorch's pickled checkpoints (.bin, .ckpt, .pth, .pt) without running pickled code.

Tensors are loaded by torch.load(weights_only=True). Before torch opens a file, its pickle is
scanned for the globals it imports, and its zip directory for the sizes it announces.
"""

import pickletools
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.weights.safetensors_io import LazyTensor

if TYPE_CHECKING:
    import torch

SUFFIXES = (".bin", ".ckpt", ".pth", ".pt")
# Limit of data.pkl, which holds names and shapes: 0.25 MB for a U-Net.
MAX_PICKLE_BYTES = 2**26
STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in STORAGES),
}
CODES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
}
STRING_OPCODES = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")


def read_pickle_tensors(path: Path) -> dict[str, LazyTensor]:
    """Reads the tensors of a PyTorch file by name, those of its "state_dict" if it has one.

    Values stay in the file until they are read.

    Raises:
        UserError: the file is not a zip written by torch.save, imports anything but tensors, or is
            shorter than it announces.
    """
    stored_sizes = scan_file(path)
    state_dict = load_state_dict(path)
    import torch

    tensors, storage_sizes = {}, {}
    for name, value in state_dict.items():
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storage_sizes[storage.data_ptr()] = storage.nbytes()
            check_storage(path, name, value)
            code = CODES.get(str(value.dtype).removeprefix("torch."), str(value.dtype))
            tensors[name] = LazyTensor(
                name, path, tuple(value.shape), code, partial(to_numpy, value)
            )
    if missing := Counter(storage_sizes.values()) - stored_sizes:
        raise UserError(
            f"{path}: values of {next(iter(missing))} bytes are not in the file as they were "
            "saved; download it again"
        )
    return tensors


def load_state_dict(path: Path) -> dict[str, Any]:
    """torch.load, tensors only and memory-mapped; UserError for a damaged file."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: is a PyTorch pickle, which only PyTorch can read: pip install torch, or get "
            "the .safetensors file"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its unpickler raises
        raise UserError(
            f"{path}: is not a whole PyTorch file ({first_line(error)}); download it again"
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return content


def scan_file(path: Path) -> Counter[int]:
    """Checks a file's zip directory and pickle; returns how often each storage size occurs.

    Raises:
        UserError: the zip directory announces more than the file holds, or the pickle imports
            anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            pickle = read_pickle(path, archive)
        forbidden = sorted(set(imported_globals(pickle)) - ALLOWED_GLOBALS)
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"{path}: is not a whole PyTorch file ({first_line(error)}); download it again, or if "
            "it was saved by a PyTorch before 1.6, save it again by a newer one"
        ) from error
    except Exception as error:  # pickletools and zipfile raise anything on damaged bytes
        raise UserError(
            f"{path}: its pickle cannot be read ({first_line(error)}); download it again"
        ) from error
    if fp8 := [name for name in forbidden if name.startswith("torch float8")]:
        raise UserError(
            f"{path}: its weights are fp8 ({fp8[0].split()[1]}); get the file in fp16 or fp32"
        )
    if forbidden:
        names = ", ".join(name.replace(" ", ".") for name in forbidden[:5])
        raise UserError(
            f"{path}: its pickle imports {names}, which is more than tensors; nothing of it was "
            "run. Get the .safetensors file"
        )
    return Counter(member.file_size for member in members if "/data/" in member.filename)


def read_pickle(path: Path, archive: zipfile.ZipFile) -> bytes:
    """The data.pkl of a torch.save file; UserError if the zip directory announces too much."""
    members = archive.infolist()
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(
            f"{path}: announces more bytes than it holds, so it was not written by torch.save"
        )
    pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise UserError(
            f"{path}: has no data.pkl of at most {MAX_PICKLE_BYTES // 2**20} MB, so it was not "
            "written by torch.save"
        )
    return archive.read(pickles[0])


def imported_globals(pickle: bytes) -> list[str]:
    """The globals that a pickle imports, each as 'module name'."""
    names, strings = [], []
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in STRING_OPCODES:
            strings.append(str(argument))
        elif opcode.name in ("GLOBAL", "INST"):
            names.append(str(argument))
        elif opcode.name == "STACK_GLOBAL":
            names.append(" ".join(strings[-2:]))
        elif opcode.name in ("EXT1", "EXT2", "EXT4"):
            names.append(f"copyreg {argument}")
    return names


def check_storage(path: Path, name: str, tensor: "torch.Tensor") -> None:
    """UserError for a tensor that claims more elements than its storage holds."""
    size, available = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if str(tensor.layout) != "torch.strided" or size > available:
        raise UserError(f"{path}: {name} {list(tensor.shape)} claims more than the file holds")


def to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    """Copies a tensor's values into a numpy array."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
