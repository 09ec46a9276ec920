"""The collectives of a compiled program that cross the border of a slice.

A script prints those of one training step on meshes of 8 virtual devices in two slices, with these
temporal layers:

    JAX_NUM_CPU_DEVICES=8 python -m tests.support.collectives conv,attention 2,2,2 4,2,1
"""

import json
import sys
from collections import Counter

import jax

from ivid2vid_jax.parallel import mesh as meshes
from ivid2vid_jax.parallel import runtime, sharding
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.planning import hlo, programs
from tests.support.sharded_run import recipe


def crossing_collectives(text: str, slice_of: list[int]) -> Counter[str]:
    """Kind of collective -> how many of a program's cross a slice.

    Args:
        text: HLO of the compiled program.
        slice_of: the slice of each partition, in the order of the mesh.
    """
    counts: Counter[str] = Counter()
    for instruction, times in hlo.instructions(text, calls=True):
        kind = instruction.operation.removesuffix("-start")
        if kind in hlo.COLLECTIVES:
            groups = hlo.collective_groups(instruction.attributes, len(slice_of))
            if any(len({slice_of[i] for i in group}) > 1 for group in groups):
                counts[kind] += times
    return counts


def compile_step(sizes: tuple[int, ...], devices: list, **changes) -> tuple[str, list[int]]:
    """Compiles a tiny training step: its HLO and the slice of each partition."""
    sharding.MIN_SHARDED_SIZE = 64
    mesh = make_mesh(MeshConfig(*sizes), devices)
    config = recipe("unused", **changes)
    program = programs.training_program(config, programs.planned_folder(config), mesh)
    with jax.set_mesh(mesh):
        step = runtime.jit(
            program.function, mesh.devices.flat[0], out_shardings=program.out_shardings
        )
        compiled = step.lower(*program.args).compile()
    return compiled.as_text(), [meshes.slice_index(device) for device in mesh.devices.flat]


def main(temporal: str, *shapes: str) -> None:
    """Prints the kinds and numbers of collectives over slices, as a JSON line per mesh."""
    meshes.slice_index = lambda device: device.id // (jax.device_count() // 2)
    kinds = tuple(filter(None, temporal.split(",")))
    for shape in shapes:
        sizes = tuple(map(int, shape.split(",")))
        text, slice_of = compile_step(sizes, jax.devices(), net__temporal=kinds)
        print(json.dumps(crossing_collectives(text, slice_of)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
