"""The name rule between Flax paths and PyTorch keys, and the layout of each leaf.

Join the names by dots and map the leaf's name:
("down_blocks.0", "resnets.1", "norm1", "scale") <-> "down_blocks.0.resnets.1.norm1.weight".
Kernels are transposed by their rank. Nothing else changes, so both directions are exact.
"""

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

# rank of the kernel -> axes that take the Flax layout to PyTorch's
TO_TORCH = {
    2: (1, 0),  # dense: [in, out] -> [out, in]
    4: (3, 2, 0, 1),  # convolution: [h, w, in, out] -> [out, in, h, w]
    5: (4, 3, 0, 1, 2),  # 3D convolution: [t, h, w, in, out] -> [out, in, t, h, w]
}


def torch_key(path: tuple[str, ...]) -> str:
    """The PyTorch key of a Flax path."""
    *modules, leaf = path
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The PyTorch shape of a leaf, from its Flax shape."""
    if path[-1] != "kernel":
        return tuple(shape)
    return tuple(shape[axis] for axis in TO_TORCH[len(shape)])


def to_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """A leaf in PyTorch's layout (contiguous)."""
    if path[-1] != "kernel":
        return np.asarray(array)
    return np.ascontiguousarray(array.transpose(TO_TORCH[array.ndim]))


def from_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """A leaf in Flax's layout (contiguous); the inverse of `to_torch`."""
    if path[-1] != "kernel":
        return array
    return np.ascontiguousarray(array.transpose(np.argsort(TO_TORCH[array.ndim])))
