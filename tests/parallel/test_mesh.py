"""The mesh on the devices of real machines: what may cross processes and slices, and what not."""

import importlib.util
import itertools
import os
import re

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel.mesh import AXES, MeshConfig, build_mesh, make_mesh
from tests.support.devices import cpu_devices, gpu_devices, tpu_devices

# Machine -> its devices, devices per process, and devices per slice or node.
MACHINES = {
    "v4-32": (tpu_devices("v4", 2, 2, 4), 4, 16),
    "v5e 4x4": (tpu_devices("v5e", 4, 4), 4, 16),
    "v5e 8x16": (tpu_devices("v5e", 8, 16), 4, 128),
    "v5p 2x2x4": (tpu_devices("v5p", 2, 2, 4), 4, 16),
    "v5p 4x4x8": (tpu_devices("v5p", 4, 4, 8), 4, 128),
    "v6e 4x4": (tpu_devices("v6e", 4, 4), 4, 16),
    "v6e 16x16": (tpu_devices("v6e", 16, 16), 4, 256),
    "2 slices of v5e 4x4": (tpu_devices("v5e", 4, 4, slices=2), 4, 16),
    "4 slices of v5e 4x4": (tpu_devices("v5e", 4, 4, slices=4), 4, 16),
    "2 nodes of 8 GPUs": (gpu_devices(2, per_process=8), 8, 8),
    "4 nodes of 8 GPUs": (gpu_devices(4, per_process=8), 8, 8),
    "2 nodes of 8 GPUs, a process each": (gpu_devices(2, per_process=1), 1, 8),
    "8 GPUs": (gpu_devices(1, per_process=8), 8, 8),
    "8 CPU devices": (cpu_devices(1, 8), 8, 8),
    "4 CPU processes": (cpu_devices(4, 2), 2, 8),
}
# Machines that the TPU compiler describes, with its own device objects.
TOPOLOGIES = {
    "v4-32": ("v4:2x2x4", 1),
    "v5e 4x4": ("v5e:4x4", 1),
    "v5e 8x16": ("v5e:8x16", 1),
    "v5p 2x2x4": ("v5p:2x2x4", 1),
    "v5p 4x4x8": ("v5p:4x4x8", 1),
    "v6e 4x4": ("v6e:4x4", 1),
    "v6e 16x16": ("v6e:16x16", 1),
    "2 slices of v5e 4x4": ("v5e:4x4", 2),
    "4 slices of v5e 4x4": ("v5e:4x4", 4),
}


def shapes(count: int):
    """All (data, fsdp, frames) with this product."""
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    for fsdp, frames in itertools.product(sizes, sizes):
        if count % (fsdp * frames) == 0:
            yield count // (fsdp * frames), fsdp, frames


def slices_of(devices) -> set[int]:
    return {getattr(device, "slice_index", None) or 0 for device in devices}


def check_every_mesh(devices, per_process: int, per_slice: int) -> None:
    """Each shape gives a mesh that keeps `frames` and `fsdp` where they belong, or one line."""
    possible = 0
    for data, fsdp, frames in shapes(len(devices)):
        config = MeshConfig(data, fsdp, frames)
        if per_process % frames or per_slice % (fsdp * frames):
            with pytest.raises(UserError) as error:
                make_mesh(config, devices)
            check_message(str(error.value), config, per_process, per_slice, len(devices))
            continue
        possible += 1
        mesh = make_mesh(config, devices)
        assert dict(mesh.shape) == {"data": data, "fsdp": fsdp, "frames": frames}
        assert set(mesh.devices.flat) == set(devices)
        for row in mesh.devices.reshape(-1, frames):
            assert len({device.process_index for device in row}) == 1, config
        for block in mesh.devices:
            assert len(slices_of(block.flat)) == 1, config
        if frames == 1:
            np.testing.assert_array_equal(mesh.devices, jax_arrangement(devices, mesh))
    assert possible >= 4


def jax_arrangement(devices, mesh) -> np.ndarray:
    """The same mesh by JAX's function for several slices."""
    data, fsdp, frames = mesh.devices.shape
    slices = len(slices_of(devices))
    if slices == 1:
        return mesh_utils.create_device_mesh(
            mesh.devices.shape, devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, frames), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def check_message(message: str, config: MeshConfig, per_process, per_slice, count) -> None:
    """One line that names the mesh, and sizes with which there is one."""
    assert "\n" not in message
    assert message.startswith(
        f"--mesh.data {config.data} --mesh.fsdp {config.fsdp} --mesh.frames {config.frames}: "
        f"on {count} devices"
    )
    frames, both = (
        [int(number) for number in re.findall(r"\d+", named)]
        for named in re.findall(r"may be ([\d, or]+),", message)
    )
    assert frames == [size for size in range(1, per_process + 1) if per_process % size == 0]
    assert both == [size for size in range(1, per_slice + 1) if per_slice % size == 0]


@pytest.mark.parametrize("machine", MACHINES)
def test_every_mesh_of_a_real_machine(machine):
    check_every_mesh(*MACHINES[machine])


@pytest.mark.skipif(
    "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]', or set TPU_LIBRARY_PATH",
)
@pytest.mark.slow
@pytest.mark.parametrize("machine", TOPOLOGIES)
def test_every_mesh_of_the_tpu_compilers_devices(machine):
    from tests.support.tpu_topology import topology_devices

    name, slices = TOPOLOGIES[machine]
    stand_ins, per_process, per_slice = MACHINES[machine]
    devices = topology_devices(name, slices)
    keys = ("id", "process_index", "coords", "core_on_chip", "platform")
    described = [tuple(str(getattr(device, key)) for key in keys) for device in devices]
    assert described == [
        tuple(str(list(v) if isinstance(v := getattr(device, key), tuple) else v) for key in keys)
        for device in stand_ins
    ]
    check_every_mesh(devices, per_process, per_slice)


@pytest.mark.parametrize(
    ("machine", "sizes", "message"),
    [
        (
            "2 slices of v5e 4x4",
            (1, 32, 1),
            "--mesh.data 1 --mesh.fsdp 32 --mesh.frames 1: on 32 devices, 16 per slice or node, "
            "4 per process, frames may be 1, 2 or 4, fsdp x frames may be 1, 2, 4, 8 or 16, and "
            "data is the rest, or -1",
        ),
        (
            "2 nodes of 8 GPUs, a process each",
            (-1, 1, 2),
            "--mesh.data -1 --mesh.fsdp 1 --mesh.frames 2: on 16 devices, 8 per slice or node, "
            "1 per process, frames may be 1, fsdp x frames may be 1, 2, 4 or 8, and data is the "
            "rest, or -1",
        ),
    ],
)
def test_a_mesh_that_cannot_be_had_is_refused_with_those_that_can(machine, sizes, message):
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(*sizes), MACHINES[machine][0])
    assert str(error.value) == message


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(fsdp=-1, frames=-1),
        MeshConfig(frames=-1),
        MeshConfig(fsdp=0),
        MeshConfig(1, -2, -4),
        MeshConfig(2, 2, 1),
        MeshConfig(fsdp=3),
        MeshConfig(fsdp=16),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(config):
    with pytest.raises(UserError, match="on 8 devices, 8 per process, frames may be 1, 2, 4 or 8"):
        make_mesh(config, MACHINES["8 CPU devices"][0])


def test_an_axis_of_minus_1_takes_the_remaining_devices():
    expected = {"data": jax.device_count(), "fsdp": 1, "frames": 1}
    assert dict(make_mesh(MeshConfig()).shape) == expected
    single = make_mesh(MeshConfig(data=1, fsdp=-1), jax.devices()[:1])
    assert dict(single.shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize("machine", MACHINES)
def test_data_and_fsdp_of_minus_1_split_parameters_within_a_slice(machine):
    devices, per_process, per_slice = MACHINES[machine]
    for frames in (1, per_process):
        mesh = make_mesh(MeshConfig(-1, -1, frames), devices)
        assert mesh.devices.shape == (len(devices) // per_slice, per_slice // frames, frames)


def test_some_chips_of_a_host_form_a_mesh():
    """Three chips are no torus. They edit a clip with `--devices 3`."""
    chips = tpu_devices("v5p", 2, 2)[:3]
    assert list(build_mesh((1, 1, 3), chips).devices.flat) == chips
