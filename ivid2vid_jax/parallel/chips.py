"""Published peak figures of TPU and GPU chips."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a TPU chip."""

    flops: float  # bfloat16 operations per second
    hbm: int  # bytes of HBM
    bandwidth: float  # HBM bytes per second
    interconnect: float  # outgoing bytes per second, over all links together
    dimensions: int  # of the torus that a slice forms


# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, tables "Key chip specifications". The
# published interconnect bandwidth counts both directions, so half of it is outgoing bandwidth.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 150e9, 3),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 2),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 2),
}

# JAX's names of TPU chips (`device_kind`).
TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}

# bfloat16 operations per second without sparsity, by the beginning of `device_kind`, the longest
# first. NVIDIA's and AMD's data sheets.
GPU_FLOPS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "AMD Instinct MI300X": 1307.4e12,
}


def peak_flops(device: Any) -> float | None:
    """Peak bfloat16 operations per second of a JAX device; None for a CPU or an unknown chip."""
    kind = device.device_kind
    if kind in TPU_KINDS:
        return CHIPS[TPU_KINDS[kind]].flops
    return next((peak for name, peak in GPU_FLOPS.items() if is_chip(kind, name)), None)


def is_chip(kind: str, name: str) -> bool:
    """Whether a device_kind begins with all words of a chip's name: "L40" is no "L4"."""
    words = name.split()
    return kind.replace("-", " ").split()[: len(words)] == words
