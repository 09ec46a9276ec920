"""How arrays are placed on the mesh (data x fsdp x frames).

Parameters are placed by (regex, tactic) rules, batches by their axes. With these shardings, jit is
all that is needed; one device is the mesh 1 x 1 x 1.
"""

import functools
import logging
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.errors import UserError

log = logging.getLogger(__name__)

# Elements; smaller leaves (norms, biases) are copied to every device: gathering them costs more.
MIN_SHARDED_SIZE = 2**14

# The first match wins. Parameters, EMA and optimiser state use the same rules, since their leaves
# have the parameters' names and shapes.
RULES = ((r".*", "fsdp"),)


def fsdp_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Splits the largest axis that the size of the fsdp axis divides; small leaves are copied."""
    size = mesh.shape["fsdp"]
    divisible = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    if size == 1 or math.prod(shape) < MIN_SHARDED_SIZE or not divisible:
        return P()
    largest = max(divisible, key=lambda axis: shape[axis])
    return P(*(("fsdp" if axis == largest else None) for axis in range(len(shape))))


TACTICS = {"fsdp": fsdp_spec, "replicate": lambda shape, mesh: P()}


def tree_shardings(tree: Any, mesh: Mesh, rules=RULES) -> Any:
    """The NamedSharding of each leaf of a tree of arrays or ShapeDtypeStructs.

    Large leaves that could not be split are logged.
    """
    fsdp = mesh.shape["fsdp"]

    def leaf_sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        tactic = next(tactic for pattern, tactic in rules if re.search(pattern, name))
        spec = TACTICS[tactic](leaf.shape, mesh)
        is_large = math.prod(leaf.shape) >= MIN_SHARDED_SIZE
        if tactic == "fsdp" and fsdp > 1 and is_large and spec == P():
            log.info(
                "%s %s is copied to every device: no axis is a multiple of %d",
                name,
                list(leaf.shape),
                fsdp,
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def check_batch(batch: int, frames: int, accumulation: int, mesh: Mesh) -> None:
    """Checks that a mesh can split batches, before anything is loaded.

    Logs a warning if only the clips of a micro-batch cannot be split evenly over the devices.

    Args:
        batch: clips of an optimiser step, over all processes.
        frames: frames of a clip.
        accumulation: micro-batches of an optimiser step.
        mesh: the mesh.

    Raises:
        UserError: for clips or frames that cannot be split evenly.
    """
    batch_sharding("--loader.frames", (batch, frames, 1, 1, 3), mesh)
    shards, clips = mesh.shape["data"] * mesh.shape["fsdp"], batch // accumulation
    if clips % shards:
        log.warning(
            "%d clips per micro-batch (--loader.batch %d / --optim.accumulation %d) are not a "
            "multiple of the mesh's data x fsdp = %d: some devices repeat the work of others",
            clips,
            batch,
            accumulation,
            shards,
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is copied to every device."""
    return NamedSharding(mesh, P())


def batch_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of one array of a batch: clips over data and fsdp, frames over frames.

    Args:
        name: the array's name, for errors.
        shape: [B, ...] over all processes; [B, T, H, W, C] has frames.
        mesh: the mesh.

    Raises:
        UserError: for clips or frames that cannot be split evenly.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if shape[0] % shards:
        above = shape[0] + -shape[0] % shards
        nearest = f"{above - shards} or {above}" if above > shards else str(above)
        raise UserError(
            f"--loader.batch {shape[0]} is not a multiple of data x fsdp = {shards} of the mesh; "
            f"give --loader.batch {nearest}, or more devices to --mesh.frames"
        )
    has_frames = len(shape) == 5 and shape[1] > 1
    if has_frames and shape[1] % mesh.shape["frames"]:
        raise UserError(
            f"{name}: {shape[1]} frames are not a multiple of --mesh.frames "
            f"{mesh.shape['frames']}; change one of them"
        )
    clips = ("data", "fsdp")
    return NamedSharding(mesh, P(clips, "frames") if has_frames else P(clips))


def put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Places a host array that every process holds.

    jax.device_put would compare it between all processes first.
    """
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def gather(tree: Any, mesh: Mesh) -> Any:
    """Copies the arrays of a tree on a mesh to each of its devices, by one compiled program.

    All processes must call it. Each device holds the whole tree then.
    """
    return gather_program(mesh)(tree)


@functools.cache
def gather_program(mesh: Mesh) -> jax.stages.Wrapped:
    """The program of `gather`, cached so that it compiles once per tree."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """Places a process's part of a batch, numpy [b, ...], as global arrays [B, ...] on the mesh."""
    arrays = {}
    for name, part in batch.items():
        shape = (part.shape[0] * jax.process_count(), *part.shape[1:])
        sharding = batch_sharding(name, shape, mesh)
        # With several processes JAX counts this as an implicit transfer.
        with jax.transfer_guard("allow"):
            arrays[name] = jax.make_array_from_process_local_data(sharding, part, shape)
    return arrays
