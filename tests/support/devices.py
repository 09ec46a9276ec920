"""Processes with several virtual CPU devices."""

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
