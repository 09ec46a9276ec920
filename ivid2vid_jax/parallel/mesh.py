"""The one mesh builder: axes `data`, `fsdp` and `frames` over the devices of a run, an edit or a plan."""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh

from ivid2vid_jax.utils.errors import UserError

AXES = ("data", "fsdp", "frames")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are used: data * fsdp * frames = number of devices; one of them may be -1, what is left."""

    data: int = -1  # the batch is split, parameters are copied
    fsdp: int = 1  # the batch is split, and parameters, optimiser state and EMA too
    frames: int = 1  # the clip's frames are split


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The mesh over all devices of all processes. Raises UserError where the axes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(
            f"--mesh {dict(zip(AXES, sizes, strict=True))}: sizes are positive, and at most one may be -1, what is left"
        )
    known = math.prod(size for size in sizes if size > 0)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"--mesh {' x '.join(map(str, sizes))} is not the {len(devices)} devices there are; let one of data, fsdp, frames be -1"
        )
    local = sum(device.process_index == jax.process_index() for device in devices)
    if local % sizes[2]:
        raise UserError(
            f"--mesh.frames {sizes[2]} does not divide the {local} devices of one process; frames are split within a host"
        )
    return build_mesh(tuple(sizes), devices)


def build_mesh(shape: tuple[int, int, int], devices: list[jax.Device]) -> Mesh:
    """The mesh of a shape (data, fsdp, frames) over these devices."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
