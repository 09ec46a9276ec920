"""The devices of one edit, over which a clip's frames or a long clip's windows are split."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.mesh import build_mesh

# Mesh axes, by the names that models/sharded_reshape.py uses. BATCH_AXIS splits windows or clips.
FRAMES_AXIS, BATCH_AXIS = "frames", "data"


class DeviceGroup:
    """Some local devices, with a mesh to split frames and one to split windows or clips.

    With one device there are no meshes, and all methods are plain jit and device_put.

    Args:
        count: number of local devices; None for all.

    Raises:
        UserError: for more devices than this process has.
    """

    def __init__(self, count: int | None = None):
        devices = jax.local_devices()
        count = len(devices) if count is None else count
        if not 1 <= count <= len(devices):
            raise UserError(
                f"--devices {count} must be between 1 and the {len(devices)} of this machine"
            )
        self.count = count
        self.meshes = {}
        if count > 1:
            self.meshes = {
                FRAMES_AXIS: build_mesh((1, 1, count), devices[:count]),
                BATCH_AXIS: build_mesh((count, 1, 1), devices[:count]),
            }

    def jit(self, function: Callable, by: str = FRAMES_AXIS, **options) -> Callable:
        """`runtime.jit` under the mesh that splits the axis `by`."""
        compiled = runtime.jit(function, **options)
        if not self.meshes:
            return compiled

        def run(*args):
            with jax.set_mesh(self.meshes[by]):
                return compiled(*args)

        return run

    def put(self, tree: Any, by: str | None = None) -> Any:
        """Transfers host arrays to the devices.

        With `by`, arrays are split along their first axis over that mesh axis, if its length is a
        multiple of the number of devices. Other arrays are copied to every device.
        """
        if not self.meshes:
            return jax.device_put(tree)
        mesh = self.meshes[by or FRAMES_AXIS]

        def sharding(x):
            is_split = by and x.ndim and len(x) % self.count == 0
            return NamedSharding(mesh, P(by) if is_split else P())

        return jax.device_put(tree, jax.tree.map(sharding, tree))
