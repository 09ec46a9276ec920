"""Times the training step and the edit on a GPU against the same network in PyTorch.

    python -m tests.benchmarks.gpu --output gpu.json   # SD 1.5, 16 frames of 256x256 and 512x512
    python -m tests.benchmarks.gpu --size tiny         # a tiny network in float32, on any machine

PyTorch runs the network that our exports contain (torch_side.py) in bfloat16, channels last, with
scaled-dot-product attention, without torch.compile and in its modes. Both sides have the same
weights, and their outputs are compared before anything is timed. They run in turns in one process.
A ratio above 1 means that JAX is faster than the fastest mode; compile time is separate.

A training step is one step on cached latents that trains the whole U-Net. An edit is the sampling
loop with three guidance branches, latents to latents. Each part at each size is a process of its
own, so that it has its own peak memory. Its record is renewed after every mode: what was timed
stands, even if the benchmark is stopped. A part that fails is recorded with its last line of
stderr, and the others still run.

Both training states are on the GPU at once: 52 GiB before any activation (1.4 billion parameters,
20 bytes each, twice). Training needs a GPU of more than 80 GB; otherwise use `--parts editing`.

    model FLOP/s utilisation = evaluations x F / (seconds x peak)

F: operations of one forward evaluation, counted over the jaxpr (training/flops.py); a multiply-add
is two. evaluations: 3 for a training step (the backward pass is twice the forward pass; recomputed
operations do not count), one per sampler step for an edit. peak: see PEAKS.

The machine needs jax, flax, optax, einops, safetensors and torch, but not diffusers, grain,
tensorflow-datasets, av or tyro.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

# JAX must leave GPU memory to PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import torch

from tests.benchmarks import gpu_timing, torch_side
from tests.benchmarks.gpu_parts import PARTS, SIZES, Bench

# Dense bfloat16 operations per second, by part of the device name; the first match counts. Source:
# NVIDIA's data sheets; where they give the figure with sparsity only, half of it.
PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.5e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
}


def peak_of(device: str) -> float | None:
    """Peak operations per second of a device by its name; None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def measure_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs one part at one size in this process; yields the record after every mode of PyTorch."""
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
    if SIZES[args.size].dtype == "float32":  # by default both round float32 products to TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        jax.config.update("jax_default_matmul_precision", "highest")
    args.part, args.pixels = args.one, args.one_pixels
    bench = Bench.from_args(args)
    device = jax.devices()[0].device_kind
    peak = peak_of(device)
    about = {"part": args.part, "pixels": args.pixels, "frames": bench.config.loader.frames}
    for times in gpu_timing.measure(bench, args):
        point = about | {"dtype": bench.dtype} | times
        for side in ("ours", "torch"):
            point[f"{side}_utilisation"] = (
                point["flop"] / point[f"{side}_s"] / peak if peak else None
            )
        yield {"device": device, "peak_flop_per_s": peak, "versions": versions(), "point": point}


def versions() -> dict[str, str]:
    """Versions of the packages, Python, CUDA and cuDNN."""
    packages = ("jax", "jaxlib", "flax", "optax", "torch")
    return {name: metadata.version(name) for name in packages} | {
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def measure_in_process(arguments: list[str], part: str, pixels: int) -> Iterator[dict[str, Any]]:
    """Runs one part at one size in a process of its own; yields its records, or its failure."""
    options = ["--one", part, "--one-pixels", str(pixels)]
    command = [sys.executable, "-m", "tests.benchmarks.gpu", *arguments, *options]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        code = process.wait()
        errors.seek(0)
        sys.stderr.write(log := errors.read())
    if code:
        lines = [line for line in log.splitlines() if line.strip()]
        failure = lines[-1] if lines else f"exit code {code}"
        yield {"point": {"part": part, "pixels": pixels, "failed": failure}}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line; missing values are those of --size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--pixels", type=int, nargs="+", help="pixels of a frame's side")
    parser.add_argument("--batch", type=int, default=1, help="clips per training step")
    parser.add_argument("--steps", type=int, help="sampler steps of an edit")
    parser.add_argument("--repeats", type=int, help="timed runs")
    parser.add_argument(
        "--remat", default="none", help="rematerialisation of our training step: models/remat.py"
    )
    parser.add_argument(
        "--modes", choices=torch_side.MODES[1:], nargs="*", help="modes of torch.compile, in order"
    )
    parser.add_argument("--profile", action="store_true", help="also record the longest kernels")
    parser.add_argument("--output", type=Path, help="JSON file, written after every part")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--one-pixels", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("pixels", "steps", "repeats", "modes"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(SIZES[args.size], name))
    return args


def without_kernels(point: dict[str, Any]) -> dict[str, Any]:
    """A record without its profiles, for the screen."""
    return {name: field for name, field in point.items() if not name.endswith("_kernels")}


def main(argv: list[str] | None = None) -> None:
    """Runs all parts at all sizes and writes the record."""
    args = parse(argv)
    if args.one:
        for result in measure_part(args):
            print(json.dumps(result), flush=True)
        return
    arguments = sys.argv[1:] if argv is None else argv
    record: dict[str, Any] = {"command": arguments, "points": []}
    points: dict[tuple[str, int], dict[str, Any]] = {}
    for pixels in args.pixels:
        for part in args.parts:
            for result in measure_in_process(arguments, part, pixels):
                point = result.pop("point")
                points[part, pixels] = points.get((part, pixels), {}) | point
                print(json.dumps(without_kernels(point)), flush=True)
                record |= result | {"points": list(points.values())}
                if args.output:
                    args.output.write_text(json.dumps(record, indent=2) + "\n")
    failed = [point for point in record["points"] if "failed" in point]
    if failed:
        names = [f"{point['part']} at {point['pixels']}" for point in failed]
        raise SystemExit(f"failed: {', '.join(names)}")


if __name__ == "__main__":
    main()
