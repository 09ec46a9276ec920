"""Which kernels take the time of a program on a GPU, in JAX and in PyTorch."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch

TOP = 60  # kernels per profile


def jax_kernels(run: Callable) -> list[dict[str, Any]]:
    """The kernels of one run of a JAX program, longest total time first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                seconds[event.name] += event.duration_ns / 1e9
                calls[event.name] += 1
    return table(seconds, calls)


def torch_kernels(run: Callable) -> list[dict[str, Any]]:
    """The kernels of one run of a PyTorch program, longest total time first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seconds[event.name] += event.self_device_time_total / 1e6
            calls[event.name] += 1
    return table(seconds, calls)


def table(seconds: Counter, calls: Counter) -> list[dict[str, Any]]:
    """Rows of name, seconds and calls; the last row is the sum of the kernels left out."""
    rows = [
        {"kernel": name[:120], "s": time, "calls": calls[name]}
        for name, time in seconds.most_common()
    ]
    rest = rows[TOP:]
    if rest:
        others = {
            "kernel": f"{len(rest)} others",
            "s": sum(row["s"] for row in rest),
            "calls": sum(row["calls"] for row in rest),
        }
        return [*rows[:TOP], others]
    return rows
