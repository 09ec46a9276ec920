"""The devices of one edit: with several, a clip's frames are split over them, or a long clip's windows."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.mesh import build_mesh
from ivid2vid_jax.utils.errors import UserError

FRAMES_AXIS, WINDOWS_AXIS = (
    "frames",
    "data",
)  # axes of the meshes, under the names that models/sharded_reshape.py knows


class DeviceGroup:
    """`count` devices of this process (None: all). With one, everything here is what plain jit and device_put do."""

    def __init__(self, count: int | None = None):
        there = jax.local_devices()
        count = len(there) if count is None else count
        if not 1 <= count <= len(there):
            raise UserError(f"--devices {count} must be between 1 and the {len(there)} there are")
        self.count = count
        self.meshes = (
            {
                FRAMES_AXIS: build_mesh((1, 1, count), there[:count]),
                WINDOWS_AXIS: build_mesh((count, 1, 1), there[:count]),
            }
            if count > 1
            else {}
        )

    def jit(self, function: Callable, by: str = FRAMES_AXIS, **options) -> Callable:
        """`runtime.jit`, the program being one for the mesh whose axis `by` is split."""
        compiled = runtime.jit(function, **options)
        if not self.meshes:
            return compiled

        def run(*args):
            with jax.set_mesh(self.meshes[by]):
                return compiled(*args)

        return run

    def put(self, tree: Any, by: str | None = None) -> Any:
        """Arrays from the host; split along their first axis where `by` names it and its length allows, else one copy a device."""
        if not self.meshes:
            return jax.device_put(tree)

        def where(x):
            split = by and x.ndim and len(x) % self.count == 0
            return NamedSharding(self.meshes[by or FRAMES_AXIS], P(by) if split else P())

        return jax.device_put(tree, jax.tree.map(where, tree))
