"""Processes with several virtual CPU devices, and stand-ins for the devices of real machines."""

import dataclasses
import itertools
import os

# Compiles in half the time, without changing what XLA itself optimises.
FAST_COMPILE_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
FAST_COMPILE_FLAGS = " ".join(
    f"--{name}={str(value).lower()}" for name, value in FAST_COMPILE_OPTIONS.items()
)


def device_env(devices: int, **variables: str) -> dict[str, str]:
    """The environment of a process with this many CPU devices.

    NPROC gives it enough threads that collectives of the devices cannot starve.
    """
    settings = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        "XLA_FLAGS": FAST_COMPILE_FLAGS,
    }
    return os.environ | settings | variables


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What JAX says of a device of a real machine; slice_index is None where JAX has none."""

    id: int
    process_index: int
    slice_index: int | None = None
    platform: str = "cpu"
    device_kind: str = "cpu"
    coords: tuple[int, ...] = (0, 0, 0)
    core_on_chip: int = 0


TPU_KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6 lite"}


def tpu_devices(kind: str, x: int, y: int, z: int = 1, slices: int = 1) -> list[FakeDevice]:
    """The chips of slices with hosts of 2 x 2 chips, host by host, as jax.devices() lists them."""
    devices: list[FakeDevice] = []
    hosts = itertools.product(range(slices), range(z), range(0, y, 2), range(0, x, 2))
    for process, (index, host_z, host_y, host_x) in enumerate(hosts):
        for dy, dx in itertools.product(range(2), range(2)):
            coords = (host_x + dx, host_y + dy, host_z)
            number = coords[0] + x * (coords[1] + y * coords[2])
            devices.append(
                FakeDevice(
                    id=number + 100_000 * (index + 1) if slices > 1 else number,
                    process_index=process,
                    slice_index=index if slices > 1 else None,
                    platform="tpu",
                    device_kind=TPU_KINDS[kind],
                    coords=coords,
                )
            )
    return devices


def gpu_devices(nodes: int, per_process: int) -> list[FakeDevice]:
    """Nodes of 8 GPUs, with `per_process` GPUs in each process; JAX calls a node a slice."""
    return [
        FakeDevice(i, i // per_process, i // 8, "gpu", "NVIDIA H100 80GB HBM3")
        for i in range(8 * nodes)
    ]


def cpu_devices(processes: int, each: int) -> list[FakeDevice]:
    """CPU devices of processes on one machine."""
    return [
        FakeDevice(2048 * process + i, process, 0)
        for process in range(processes)
        for i in range(each)
    ]
