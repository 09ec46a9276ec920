"""The mesh of devices, with axes `data`, `fsdp` and `frames`.

`fsdp` and `frames` stay within a TPU slice or GPU node, whose interconnect is fast; only `data`
crosses their borders. Each group of `frames` lies on the devices of one process, since a process
places whole clips.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from ivid2vid_jax.errors import UserError

AXES = ("data", "fsdp", "frames")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis: data * fsdp * frames = all devices. -1: the remaining devices.

    If data and fsdp are both -1, fsdp takes the devices of a TPU slice or GPU node, and data the
    slices or nodes.
    """

    # Splits the batch; parameters are copied.
    data: int = -1

    # Splits the batch, and parameters, optimiser state and EMA; within a TPU slice or GPU node.
    fsdp: int = 1

    # Splits the frames of a clip; within the devices of one process.
    frames: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes.

    Args:
        config: sizes of the axes.
        devices: the devices; None for all.

    Raises:
        UserError: for sizes that these devices cannot have.
    """
    devices = jax.devices() if devices is None else devices
    per_process, per_slice = common_counts(devices)
    if config.data == config.fsdp == -1 and config.frames > 0:
        config = dataclasses.replace(config, fsdp=max(1, per_slice // config.frames))
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    data, fsdp, frames = (len(devices) // known if size == -1 else size for size in sizes)
    possible = (
        sizes.count(-1) <= 1
        and min(data, fsdp, frames) > 0
        and data * fsdp * frames == len(devices)
        and per_process % frames == 0
        and per_slice % (fsdp * frames) == 0
    )
    if not possible:
        flags = (f"--mesh.{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise UserError(f"{' '.join(flags)}: {possible_sizes(devices)}")
    return build_mesh((data, fsdp, frames), devices)


def common_counts(devices: Sequence[Any]) -> tuple[int, int]:
    """The number of devices per process and per slice; the greatest divisor if they differ."""
    per_process = Counter(device.process_index for device in devices)
    per_slice = Counter(slice_index(device) for device in devices)
    return math.gcd(*per_process.values()), math.gcd(*per_slice.values())


def possible_sizes(devices: Sequence[Any]) -> str:
    """Names the meshes that these devices can form."""
    per_process, per_slice = common_counts(devices)
    groups = f"{per_process} per process"
    if per_slice < len(devices):
        groups = f"{per_slice} per slice or node, {groups}"
    return (
        f"on {len(devices)} devices, {groups}, frames may be {divisors(per_process)}, "
        f"fsdp x frames may be {divisors(per_slice)}, and data is the rest, or -1"
    )


def divisors(number: int) -> str:
    """The divisors of a number as text: "1, 2 or 4"."""
    *first, last = (str(size) for size in range(1, number + 1) if number % size == 0)
    return f"{', '.join(first)} or {last}" if first else last


def build_mesh(shape: tuple[int, int, int], devices: Sequence[Any]) -> Mesh:
    """The mesh of shape (data, fsdp, frames) over these devices.

    Slices follow each other along `data`, as in mesh_utils.create_hybrid_device_mesh, which would
    not keep `frames` within processes.
    """
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(slice_index(device), []).append(device)
    blocks = [arrange_slice(shape[1:], slices[index]) for index in sorted(slices)]
    grid = np.concatenate(blocks)
    assert grid.shape == shape and frames_within_processes(grid), f"{shape}: {grid}"
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def slice_index(device: Any) -> int:
    """The TPU slice or GPU node that a device belongs to."""
    return getattr(device, "slice_index", None) or 0


def arrange_slice(sizes: tuple[int, ...], devices: list) -> np.ndarray:
    """The devices of one slice as an array [data, fsdp, frames], for the sizes of fsdp and frames.

    JAX's arrangement, which knows the interconnect, if it keeps `frames` within processes; else
    process after process.
    """
    shape = (len(devices) // math.prod(sizes), *sizes)
    try:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except AssertionError:  # the devices are no torus, such as 3 chips of a host
        grid = None
    if grid is None or not frames_within_processes(grid):
        by_process = sorted(devices, key=lambda device: device.process_index)
        grid = np.asarray(by_process, object).reshape(shape)
    return grid


def frames_within_processes(grid: np.ndarray) -> bool:
    """Whether each row of an array [data, fsdp, frames] of devices is of one process."""
    rows = grid.reshape(-1, grid.shape[-1])
    return all(len({device.process_index for device in row}) == 1 for row in rows)
