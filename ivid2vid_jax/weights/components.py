"""Parameters of one component (unet, vae, text_encoder, clip) <-> its folder, strictly: no key is ever guessed or dropped."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights import safetensors_io, torch_keys

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "clip": "model",
}

# Buffers that older releases saved and that hold no learned value.
IGNORED = ("position_ids",)

# The autoencoder's attention in folders written before diffusers 0.15, Stable Diffusion 1.5's among them.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A leaf that is read when an array is made of it (np.asarray), so that weights pass from file to file one by one.

    shape: Flax's; read: gives it as it is stored, in PyTorch's layout; origin: the file and the name it has there.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    origin: tuple[Path, str]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return torch_keys.from_torch(self.path, self.read())


def canonical_key(component: str, key: str) -> str:
    """Today's name of a key: what older or newer releases of the reference libraries call otherwise."""
    if component == "text_encoder" and not key.startswith("text_model."):
        return f"text_model.{key}"  # transformers 5 saves without the prefix that published folders carry
    if component == "vae" and ".attentions." in key:
        *head, name, leaf = key.split(".")
        return ".".join([*head, OLD_ATTENTION.get(name, name), leaf])
    return key


def load_component(
    component: str,
    folder: Path,
    abstract: Any,
    dtype=None,
    shardings: Any = None,
    variant: str | None = None,
    skip: Callable[[str], bool] | None = None,
) -> Any:
    """Reads a component's parameters into the tree of `abstract` (jax.ShapeDtypeStruct leaves).

    dtype: cast floating leaves to it; None keeps each as stored; a dict says it for each Flax path. shardings: a tree like `abstract`, or one sharding for
    all, or None for the default device; each leaf goes straight there, so host memory holds one leaf at a time. skip: PyTorch keys that are left alone.
    Raises UserError that names every missing, unexpected or misshapen key with its file.
    """
    if shardings is not None and not isinstance(shardings, jax.sharding.Sharding):
        shardings = flax.traverse_util.flatten_dict(shardings)
    params = {}
    for path, array in load_component_arrays(component, folder, abstract, variant, skip):
        wanted = dtype[path] if isinstance(dtype, dict) else dtype
        array = array if wanted is None else array.astype(wanted, copy=False)
        params[path] = jax.device_put(
            array, shardings[path] if isinstance(shardings, dict) else shardings
        )
    return flax.traverse_util.unflatten_dict(params)


def load_component_arrays(
    component: str, folder: Path, abstract: Any, variant: str | None = None, skip=None
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """(Flax path, array as stored, in Flax's layout) of every leaf of `abstract`, read one by one. Raises as `load` does."""
    for path, leaf in flax.traverse_util.flatten_dict(
        open_component(component, folder, abstract, variant, skip)
    ).items():
        yield path, np.asarray(leaf)


def open_component(
    component: str, folder: Path, abstract: Any, variant: str | None = None, skip=None
) -> Any:
    """The tree of `abstract` with `Stored` leaves; only headers are read. Raises as `load` does."""
    tensors = {}
    for key, entry in safetensors_io.read_headers(
        safetensors_io.find_files(Path(folder), STEMS[component], variant)
    ).items():
        if key.rpartition(".")[2] not in IGNORED and not (skip and skip(key)):
            tensors[canonical_key(component, key)] = (
                key,
                entry,
                partial(safetensors_io.read_tensor, key, entry),
            )
    return fit_tensors(component, folder, abstract, tensors)


def fit_tensors(
    component: str,
    where: Path,
    abstract: Any,
    tensors: dict[str, tuple[str, safetensors_io.Entry, Callable]],
) -> Any:
    """The tree of `abstract` with `Stored` leaves, of tensors by today's name: (name in the file, entry, reader). UserError where they do not fit."""
    flat = flax.traverse_util.flatten_dict(abstract)
    check_tensors(
        component,
        where,
        {
            torch_keys.torch_key(path): torch_keys.torch_shape(path, leaf.shape)
            for path, leaf in flat.items()
        },
        tensors,
    )
    leaves = {}
    for path, leaf in flat.items():
        key, entry, read = tensors[torch_keys.torch_key(path)]
        leaves[path] = StoredTensor(
            path, leaf.shape, np.dtype(safetensors_io.DTYPES[entry.dtype]), read, (entry.file, key)
        )
    return flax.traverse_util.unflatten_dict(leaves)


def check_tensors(
    component: str,
    folder: Path,
    expected: dict[str, tuple],
    entries: dict[str, tuple[str, safetensors_io.Entry, Callable]],
) -> None:
    """UserError where the stored tensors are not exactly the expected ones in name, shape and kind."""
    problems = [
        f"missing {key} {list(shape)}" for key, shape in expected.items() if key not in entries
    ]
    for key, (name, entry, _) in entries.items():
        if key not in expected:
            problems.append(f"unexpected {name} {list(entry.shape)} in {entry.file.name}")
        elif entry.shape != expected[key]:
            problems.append(
                f"misshapen {name} {list(entry.shape)} in {entry.file.name}, the config asks for {list(expected[key])}"
            )
        elif entry.dtype not in ("F32", "F16", "BF16"):
            problems.append(f"{name} in {entry.file.name} is {entry.dtype}, not F32, F16 or BF16")
    if problems:
        shown = "; ".join(problems[:20]) + (
            f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        )
        raise UserError(f"{folder}: the {component} weights do not fit config.json: {shown}")


def save_component(
    component: str,
    folder: Path,
    params: Any,
    dtype=None,
    variant: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a component's parameters as safetensors under PyTorch's names and layout, the inverse of `load`.

    dtype: cast floating leaves to it; None keeps each. More than `max_shard_bytes` are cut into shards with an index.
    """
    flat = {
        torch_keys.torch_key(path): (path, leaf)
        for path, leaf in flax.traverse_util.flatten_dict(params).items()
    }
    shapes = {
        key: (torch_keys.torch_shape(path, leaf.shape), np.dtype(dtype or leaf.dtype))
        for key, (path, leaf) in sorted(flat.items())
    }
    groups = split(shapes, max_shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    middle = f".{variant}" if variant else ""
    weight_map = {}
    for i, keys in enumerate(groups):
        part = f"-{i + 1:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        name = f"{STEMS[component]}{middle}{part}.safetensors"
        leaves = (
            torch_keys.to_torch(path, np.asarray(leaf)).astype(shapes[key][1], copy=False)
            for key in keys
            for path, leaf in [flat[key]]
        )
        safetensors_io.write_safetensors(folder / name, leaves, {key: shapes[key] for key in keys})
        weight_map |= dict.fromkeys(keys, name)
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(map(size, shapes.values()))},
            "weight_map": weight_map,
        }
        write_json(folder / f"{STEMS[component]}.safetensors.index{middle}.json", index)


def size(shape_dtype) -> int:
    shape, dtype = shape_dtype
    return math.prod(shape) * dtype.itemsize


def split(shapes: dict, limit: int) -> list[list[str]]:
    """Keys in groups of at most `limit` bytes, in order; a larger tensor stands alone."""
    groups, used = [[]], 0
    for key, shape_dtype in shapes.items():
        if groups[-1] and used + size(shape_dtype) > limit:
            groups.append([])
            used = 0
        groups[-1].append(key)
        used += size(shape_dtype)
    return groups
