"""Parameters of one component (unet, vae, text_encoder, clip) <-> the files in its folder.

Loading is strict: every key of the files must be a parameter of the net, and the reverse.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights import safetensors_io, torch_keys
from ivid2vid_jax.weights.checkpoint_kinds import check_precision
from ivid2vid_jax.weights.safetensors_io import LazyTensor

# File names without the extension, as diffusers and transformers write them.
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "clip": "model",
}

# Buffers that older releases saved and that hold no learned value.
IGNORED = ("position_ids",)

# The autoencoder's attention layers before diffusers 0.15, e.g. in Stable Diffusion 1.5.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

MAX_SHARD_BYTES = 5 * 10**9
MAX_PROBLEMS_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A leaf of a parameter tree that is still on disk; np.asarray reads it.

    Weights pass from file to file through such leaves, one at a time.
    """

    path: tuple[str, ...]  # Flax path
    shape: tuple[int, ...]  # in Flax's layout
    dtype: np.dtype
    tensor: LazyTensor  # in PyTorch's layout

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return torch_keys.from_torch(self.path, self.tensor.read())


def canonical_key(component: str, key: str) -> str:
    """The current name of a key that other releases of the reference libraries name differently."""
    if component == "text_encoder" and not key.startswith("text_model."):
        return f"text_model.{key}"  # transformers 5 drops the prefix that published folders have
    if component == "vae" and ".attentions." in key:
        *modules, layer, leaf = key.split(".")
        return ".".join([*modules, OLD_ATTENTION.get(layer, layer), leaf])
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
    """Loads a component's parameters into the tree of `abstract`.

    Each leaf goes straight to its device, so host memory holds one leaf at a time.

    Args:
        component: unet, vae, text_encoder or clip.
        folder: the component's folder.
        abstract: tree of jax.ShapeDtypeStruct leaves.
        dtype: casts floating leaves; a dict has a dtype per Flax path; None keeps what is stored.
        shardings: a tree like `abstract`, one sharding for all, or None for the default device.
        variant: "fp16" or None.
        skip: whether to skip a PyTorch key.

    Raises:
        UserError: names every missing, unexpected or misshapen key with its file.
    """
    if shardings is not None and not isinstance(shardings, jax.sharding.Sharding):
        shardings = flax.traverse_util.flatten_dict(shardings)
    params = {}
    for path, array in load_component_arrays(component, folder, abstract, variant, skip):
        leaf_dtype = dtype[path] if isinstance(dtype, dict) else dtype
        if leaf_dtype is not None:
            array = array.astype(leaf_dtype, copy=False)
        sharding = shardings[path] if isinstance(shardings, dict) else shardings
        # With a sharding over several processes, device_put would compare the array between them.
        params[path] = (
            jax.device_put(array)
            if sharding is None
            else jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        )
    return flax.traverse_util.unflatten_dict(params)


def load_component_arrays(
    component: str, folder: Path, abstract: Any, variant: str | None = None, skip=None
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Reads the leaves of `abstract` one by one: (Flax path, array in Flax's layout, as stored).

    Arguments and errors: see `load_component`.
    """
    tree = open_component(component, folder, abstract, variant, skip)
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
        yield path, np.asarray(leaf)


def open_component(
    component: str, folder: Path, abstract: Any, variant: str | None = None, skip=None
) -> Any:
    """Reads the headers of a component's files: the tree of `abstract` with `StoredTensor` leaves.

    Arguments and errors: see `load_component`.
    """
    files = safetensors_io.find_files(Path(folder), STEMS[component], variant)
    tensors = {
        canonical_key(component, name): tensor
        for name, tensor in safetensors_io.read_headers(files).items()
        if not is_ignored(name) and not (skip and skip(name))
    }
    return fit_tensors(component, folder, abstract, tensors)


def is_ignored(key: str) -> bool:
    """Whether a key is a buffer without learned values."""
    return key.rpartition(".")[2] in IGNORED


def fit_tensors(
    component: str, source: Path, abstract: Any, tensors: Mapping[str, LazyTensor]
) -> Any:
    """Puts tensors into the tree of `abstract` as `StoredTensor` leaves.

    Args:
        component: unet, vae, text_encoder or clip.
        source: file or folder of the tensors, for error messages.
        abstract: tree of jax.ShapeDtypeStruct leaves.
        tensors: canonical key -> tensor.

    Raises:
        UserError: the tensors do not match the tree.
    """
    flat = flax.traverse_util.flatten_dict(abstract)
    expected_shapes = {
        torch_keys.torch_key(path): torch_keys.torch_shape(path, leaf.shape)
        for path, leaf in flat.items()
    }
    check_precision(source, tensors.values())
    tensors = {key: squeezed(tensor, expected_shapes.get(key)) for key, tensor in tensors.items()}
    check_tensors(component, source, expected_shapes, tensors)
    leaves = {}
    for path, leaf in flat.items():
        tensor = tensors[torch_keys.torch_key(path)]
        dtype = np.dtype(safetensors_io.DTYPES[tensor.dtype])
        leaves[path] = StoredTensor(path, leaf.shape, dtype, tensor)
    return flax.traverse_util.unflatten_dict(leaves)


def squeezed(tensor: LazyTensor, shape: tuple[int, ...] | None) -> LazyTensor:
    """The tensor in the expected shape, if both differ in axes of size 1 at the end only.

    Other tools store dense layers as 1x1 convolutions, and biases as [C, 1, 1].
    """
    if shape is None or tensor.shape == shape:
        return tensor
    axes = min(len(shape), len(tensor.shape))
    same = tensor.shape[:axes] == shape[:axes]
    if not same or any(size != 1 for size in (*tensor.shape[axes:], *shape[axes:])):
        return tensor
    return tensor.map(shape, lambda array: array.reshape(shape))


def check_tensors(
    component: str,
    source: Path,
    expected_shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, LazyTensor],
) -> None:
    """UserError if names, shapes or dtypes of the tensors are not those that the config implies."""
    problems = [
        f"missing {key} {list(shape)}"
        for key, shape in expected_shapes.items()
        if key not in tensors
    ]
    for key, tensor in tensors.items():
        label = f"{tensor.name} {list(tensor.shape)} in {tensor.file.name}"
        if key not in expected_shapes:
            problems.append(f"unexpected {label}")
        elif tensor.shape != expected_shapes[key]:
            problems.append(f"misshapen {label}, the config implies {list(expected_shapes[key])}")
        elif tensor.dtype not in ("F32", "F16", "BF16"):
            problems.append(
                f"{tensor.name} in {tensor.file.name} is {tensor.dtype}, not F32, F16 or BF16"
            )
    if problems:
        text = "; ".join(problems[:MAX_PROBLEMS_SHOWN])
        if len(problems) > MAX_PROBLEMS_SHOWN:
            text += f"; and {len(problems) - MAX_PROBLEMS_SHOWN} more"
        raise UserError(f"{source}: the {component} weights do not fit config.json: {text}")


def save_component(
    component: str,
    folder: Path,
    params: Any,
    dtype=None,
    variant: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a component's parameters as safetensors with PyTorch's names and layout.

    The inverse of `load_component`.

    Args:
        component: unet, vae, text_encoder or clip.
        folder: the component's folder; created if needed.
        params: parameter tree.
        dtype: casts floating leaves; None keeps each.
        variant: "fp16" or None, part of the file names.
        max_shard_bytes: above this size the weights are split into shards with an index.
    """
    leaves = {
        torch_keys.torch_key(path): (path, leaf)
        for path, leaf in flax.traverse_util.flatten_dict(params).items()
    }
    headers = {
        key: (torch_keys.torch_shape(path, leaf.shape), np.dtype(dtype or leaf.dtype))
        for key, (path, leaf) in sorted(leaves.items())
    }

    def arrays(keys: list[str]) -> Iterator[np.ndarray]:
        for key in keys:
            path, leaf = leaves[key]
            array = torch_keys.to_torch(path, np.asarray(leaf))
            yield array.astype(headers[key][1], copy=False)

    shards = split_into_shards(headers, max_shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    infix = f".{variant}" if variant else ""
    weight_map: dict[str, str] = {}
    for i, keys in enumerate(shards):
        part = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"{STEMS[component]}{infix}{part}.safetensors"
        safetensors_io.write_safetensors(
            folder / name, arrays(keys), {key: headers[key] for key in keys}
        )
        weight_map |= dict.fromkeys(keys, name)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(num_bytes, headers.values()))},
            "weight_map": weight_map,
        }
        write_json(folder / f"{STEMS[component]}.safetensors.index{infix}.json", index)


def num_bytes(header: tuple[tuple[int, ...], np.dtype]) -> int:
    """Size of a tensor of (shape, dtype)."""
    shape, dtype = header
    return math.prod(shape) * dtype.itemsize


def split_into_shards(
    headers: dict[str, tuple[tuple[int, ...], np.dtype]], max_bytes: int
) -> list[list[str]]:
    """Splits the keys into shards of at most `max_bytes`, in order.

    A tensor that is larger has a shard of its own.
    """
    shards: list[list[str]] = [[]]
    shard_bytes = 0
    for key, header in headers.items():
        if shards[-1] and shard_bytes + num_bytes(header) > max_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(key)
        shard_bytes += num_bytes(header)
    return shards
