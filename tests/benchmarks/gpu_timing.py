"""Times a part of the GPU benchmark; see tests/benchmarks/gpu.py."""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import torch

from tests.benchmarks import torch_side
from tests.benchmarks.gpu_parts import PARTS, Bench, Programs, log
from tests.benchmarks.kernel_profile import jax_kernels, torch_kernels
from tests.benchmarks.turns import turns


def measure(bench: Bench, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times a part against PyTorch without and with torch.compile.

    Yields the record after each mode of torch.compile. `ratio` is against the fastest mode so far.
    `torch_peak_gib` is the peak of its allocator in the timed runs, `ours_peak_gib` that of JAX in
    this process.
    """
    programs = PARTS[args.part](bench, args)
    record = {"flop": programs.flop, "compile_s": seconds(programs.ours), "torch": {}}
    log(f"JAX compiled in {record['compile_s']:.0f} s; a run takes {seconds(programs.ours):.4f} s")
    modes: dict[str, dict[str, Any]] = {}
    for mode in ("none", *args.modes):
        start = time.perf_counter()
        try:
            net = torch_side.compiled(programs.net, mode)
            programs.theirs(net)
        except Exception as error:  # recorded; the other modes are timed
            record["torch"][mode] = {"failed": f"{type(error).__name__}: {first_line(error)}"}
            torch._dynamo.reset()
            continue
        compile_s = time.perf_counter() - start
        reset_peak()
        run = functools.partial(programs.theirs, net)
        modes[mode] = turns(programs.ours, run, args.repeats) | peaks()
        del modes[mode]["compile_s"]  # of a warm call
        log(f"PyTorch, {mode}: {modes[mode]['torch_s']:.4f} s; ratio {modes[mode]['ratio']:.2f}")
        fastest = min(modes, key=lambda name: modes[name]["torch_s"])
        record["torch"][mode] = {"compile_s": compile_s, "s": modes[mode]["torch_s"]}
        record |= modes[fastest] | programs.facts() | {"torch_mode": fastest}
        yield record
    if args.profile:
        yield record | profiles(programs, net)


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]


def reset_peak() -> None:
    """Resets PyTorch's peak of memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, float | None]:
    """The peaks of both allocators in GiB, where they are known."""
    jax_peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    torch_peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "ours_peak_gib": None if jax_peak is None else jax_peak / 2**30,
        "torch_peak_gib": None if torch_peak is None else torch_peak / 2**30,
    }


def profiles(programs: Programs, net: torch.nn.Module) -> dict[str, Any]:
    """The longest kernels of both sides; a profiler that fails is recorded."""
    kernels: dict[str, Any] = {}
    for name, profile, run in (
        ("ours_kernels", jax_kernels, programs.ours),
        ("torch_kernels", torch_kernels, lambda: programs.theirs(net)),
    ):
        try:
            kernels[name] = profile(run)
        except Exception as error:  # a profile is not worth the timings
            kernels[name] = f"{type(error).__name__}: {first_line(error)}"
    return kernels


def seconds(run: Callable) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
