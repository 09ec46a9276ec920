"""Who holds what: the mesh data x fsdp x frames, parameters by (regex, tactic) rules, batches by their axes.

jit with these shardings is all there is; one device is the mesh 1 x 1 x 1.
"""

import logging
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.utils.errors import UserError

log = logging.getLogger(__name__)

MIN_SHARDED_SIZE = (
    2**14
)  # elements; smaller leaves are copied to every device: norms, biases, and what is not worth a gather

# First match wins. The same rules serve parameters, EMA and optimiser state, whose leaves carry the parameter's name and shape.
RULES = ((r".*", "fsdp"),)


def fsdp_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Splits the largest axis that the mesh's fsdp axis divides; small leaves are copied."""
    size = mesh.shape["fsdp"]
    fitting = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    if size == 1 or math.prod(shape) < MIN_SHARDED_SIZE or not fitting:
        return P()
    chosen = max(fitting, key=lambda axis: shape[axis])
    return P(*(("fsdp" if axis == chosen else None) for axis in range(len(shape))))


TACTICS = {"fsdp": fsdp_spec, "replicate": lambda shape, mesh: P()}


def tree_shardings(tree: Any, mesh: Mesh, rules=RULES) -> Any:
    """The NamedSharding of each leaf of a tree of arrays or ShapeDtypeStructs; logs large leaves that could not be split."""

    def of_leaf(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        tactic = next(tactic for pattern, tactic in rules if re.search(pattern, name))
        spec = TACTICS[tactic](leaf.shape, mesh)
        if (
            tactic == "fsdp"
            and mesh.shape["fsdp"] > 1
            and spec == P()
            and math.prod(leaf.shape) >= MIN_SHARDED_SIZE
        ):
            log.info(
                "%s %s is copied to every device: no axis is a multiple of %d",
                name,
                list(leaf.shape),
                mesh.shape["fsdp"],
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def warn_if_uneven(batch: int, accumulation: int, mesh: Mesh) -> None:
    """Says in the log where the clips of a micro-batch cannot be split evenly: devices then do the same work several times."""
    ways, clips = mesh.shape["data"] * mesh.shape["fsdp"], batch // accumulation
    if clips % ways:
        log.warning(
            "%d clips a micro-batch (--loader.batch %d, --optim.accumulation %d) are not a multiple of data x fsdp = %d of the mesh: devices do work twice",
            clips,
            batch,
            accumulation,
            ways,
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of one array of a batch, shape [B, ...] over all processes: clips by data and fsdp, frames of [B, T, H, W, C] by frames."""
    clips = ("data", "fsdp")
    frames = "frames" if len(shape) == 5 and shape[1] > 1 else None
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if shape[0] % ways:
        raise UserError(
            f"--loader.batch {shape[0]} is not a multiple of data x fsdp = {ways} of the mesh"
        )
    if frames and shape[1] % mesh.shape["frames"]:
        raise UserError(
            f"{name}: {shape[1]} frames are not a multiple of --mesh.frames {mesh.shape['frames']}"
        )
    return NamedSharding(mesh, P(clips, frames) if frames else P(clips))


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """A process's share of a batch, numpy [b, ...], to global arrays [B, ...] on the mesh."""
    count = jax.process_count()
    out = {}
    for name, part in batch.items():
        shape = (part.shape[0] * count, *part.shape[1:])
        with jax.transfer_guard(
            "allow"
        ):  # of several processes JAX counts this transfer as an implicit one
            out[name] = jax.make_array_from_process_local_data(
                batch_sharding(name, shape, mesh), part, shape
            )
    return out
