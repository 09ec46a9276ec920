"""PyTorch's own files (.bin, .ckpt, .pth, .pt): tensors only, through torch.load(weights_only=True); no pickled code runs.

A file is looked through before torch sees it: which names its pickle calls for, and that it holds the bytes that it promises.
"""

import pickletools
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.safetensors_io import Entry

SUFFIXES = (".bin", ".ckpt", ".pth", ".pt")
PICKLE_BYTES = 2**26  # of the names and shapes; a U-Net's are a quarter of a megabyte
STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = {
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
TEXT = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")


def read_pickle_tensors(path: Path) -> dict[str, tuple[str, Entry, Callable[[], np.ndarray]]]:
    """Name -> (name, entry, reader) of every tensor, those of a "state_dict" where the file has one. Values stay in the file until they are read.

    Raises UserError for a file that is no such zip, calls for anything but tensors, or does not hold what it promises.
    """
    records = scan_pickle(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: is a PyTorch pickle, which takes PyTorch to read: pip install torch, or get the .safetensors file"
        ) from error
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its unpickler does
        raise UserError(
            f"{path}: is not a whole PyTorch file ({first_line(error)}); download it again"
        ) from error
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(held, dict) or not all(isinstance(key, str) for key in held):
        raise UserError(f"{path}: holds a {type(held).__name__}, not tensors by name")
    found, storages = {}, {}
    for key, value in held.items():
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            check(path, key, value)
            code = CODES.get(str(value.dtype).removeprefix("torch."), str(value.dtype))
            found[key] = (key, Entry(path, tuple(value.shape), code), partial(array, value))
    if short := Counter(storages.values()) - records:
        raise UserError(
            f"{path}: values of {next(iter(short))} bytes are not in it as they were saved; download it again"
        )
    return found


def scan_pickle(path: Path) -> Counter:
    """How often each size in bytes occurs among the stored values. UserError for a file whose zip directory or pickle asks for more than tensors."""
    try:
        with zipfile.ZipFile(path) as held:
            members, size = held.infolist(), path.stat().st_size
            if (
                any(member.compress_type != zipfile.ZIP_STORED for member in members)
                or sum(member.file_size for member in members) > size
            ):
                raise UserError(
                    f"{path}: promises more bytes than it has; it is no file of torch.save"
                )
            pickles = [
                member for member in members if member.filename.rpartition("/")[2] == "data.pkl"
            ]
            if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
                raise UserError(
                    f"{path}: has no data.pkl of at most {PICKLE_BYTES // 2**20} MB, so it is no file of torch.save"
                )
            foreign = sorted(set(called(held.read(pickles[0]))) - ALLOWED)
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        way = "if it was saved by a PyTorch before 1.6, save it again by a newer one"
        raise UserError(
            f"{path}: is not a whole PyTorch file ({first_line(error)}); download it again, or {way}"
        ) from error
    except (
        Exception
    ) as error:  # pickletools and zipfile raise whatever a damaged byte makes of them
        raise UserError(
            f"{path}: its pickle cannot be read ({first_line(error)}); download it again"
        ) from error
    if foreign:
        named = ", ".join(name.replace(" ", ".") for name in foreign[:5])
        raise UserError(
            f"{path}: its pickle calls for {named}, which is more than tensors; nothing of it was run. Get the .safetensors file"
        )
    return Counter(member.file_size for member in members if "/data/" in member.filename)


def called(pickle: bytes) -> list[str]:
    """ "module name" of every global that a pickle asks for."""
    found, strings = [], []
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in TEXT:
            strings.append(argument)
        elif opcode.name in ("GLOBAL", "INST"):
            found.append(argument)
        elif opcode.name == "STACK_GLOBAL":
            found.append(" ".join(strings[-2:]))
        elif opcode.name in ("EXT1", "EXT2", "EXT4"):
            found.append(f"copyreg {argument}")
    return found


def check(path: Path, key: str, tensor) -> None:
    """UserError for a tensor that claims more than its storage holds."""
    if (
        str(tensor.layout) != "torch.strided"
        or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ):
        raise UserError(f"{path}: {key} {list(tensor.shape)} claims more than the file holds")


def array(tensor) -> np.ndarray:
    """A tensor's values, copied out."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
