"""Processes with several virtual devices."""

import os

OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}  # half the time to compile; what XLA itself does is as ever
QUICK = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())


def environment(devices: int, **more) -> dict:
    """Of a process with so many devices of the CPU, and threads enough that their collectives cannot starve."""
    return (
        os.environ
        | {
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_PLATFORMS": "cpu",
            "NPROC": "16",
            "XLA_FLAGS": QUICK,
        }
        | more
    )
