"""The mesh of devices, with axes `data`, `fsdp` and `frames`."""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh

from ivid2vid_jax.errors import UserError

AXES = ("data", "fsdp", "frames")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis: data * fsdp * frames = all devices. One may be -1, the remainder."""

    # Splits the batch; parameters are copied.
    data: int = -1

    # Splits the batch, and parameters, optimiser state and EMA.
    fsdp: int = 1

    # Splits the frames of a clip.
    frames: int = 1


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The mesh over all devices of all processes.

    Args:
        config: sizes of the axes.
        devices: the devices; None for all.

    Raises:
        UserError: for sizes that do not multiply to the number of devices, or `frames` across
            processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(
            f"--mesh {dict(zip(AXES, sizes, strict=True))}: sizes must be positive, "
            "and at most one may be -1 (the remaining devices)"
        )
    known = math.prod(size for size in sizes if size > 0)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"--mesh {' x '.join(map(str, sizes))} does not match the {len(devices)} devices; "
            "let one of data, fsdp, frames be -1"
        )
    local_count = sum(device.process_index == jax.process_index() for device in devices)
    if local_count % sizes[2]:
        raise UserError(
            f"--mesh.frames {sizes[2]} does not divide the {local_count} devices of one process; "
            "frames are split within a host"
        )
    return build_mesh((sizes[0], sizes[1], sizes[2]), devices)


def build_mesh(shape: tuple[int, int, int], devices: list[jax.Device]) -> Mesh:
    """The mesh of shape (data, fsdp, frames) over these devices."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
