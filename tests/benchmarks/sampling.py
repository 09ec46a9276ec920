"""Measures edit success on the shapes world with fewer steps, other samplers, guidance intervals.

    python -m tests.benchmarks.sampling --count 20 --output runs/sampling

The first configuration is the reference: all three branches at every step. Work is counted in
evaluations of the U-Net, which dominate the time of an edit. Seconds are the median of three whole
edits of one clip with the autoencoder, in turns with the other configurations. Every configuration
edits the same clips, so the change of success is a paired difference, with its 95% interval. An
interrupted run resumes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.data.shapes import KINDS, triplet
from ivid2vid_jax.diffusion.guidance import guidance_branches
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.utils.intervals import bootstrap_interval
from ivid2vid_jax.utils.progress import Progress

CONFIGURATIONS = {
    "ddim, 20 steps, guided throughout": {},
    "ddim, 10 steps": dict(steps=10),
    "dpm++, 10 steps": dict(sampler="dpm++", steps=10),
    "dpm++, 6 steps": dict(sampler="dpm++", steps=6),
    "guided in the first half": dict(guide_to=0.5),
    "guided in the first quarter": dict(guide_to=0.25),
    "dpm++, 10 steps, guided in the first half": dict(sampler="dpm++", steps=10, guide_to=0.5),
    "not guided": dict(text_scale=1.0, video_scale=1.0),
}


def evaluations(settings: EditSettings) -> int:
    """Evaluations of the U-Net for one window."""
    shares = [i / settings.steps for i in range(settings.steps)]
    guided = sum(settings.guide_from <= share < settings.guide_to for share in shares)
    branches = len(guidance_branches(settings.text_scale, settings.video_scale))
    return guided * branches + settings.steps - guided


def time_edits(edits: dict[str, Callable], truth: Any, repeats: int = 3) -> dict[str, float]:
    """Name -> median seconds of an edit of a triplet's source, without compilation."""
    for edit in edits.values():
        edit(truth)
    seconds: dict[str, list[float]] = {name: [] for name in edits}
    for _ in range(repeats):
        for name, edit in edits.items():
            start = time.perf_counter()
            edit(truth)
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main(argv: list[str] | None = None) -> None:
    """Edits all clips with all configurations and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=20, help="clips per kind of edit")
    parser.add_argument("--text-scale", type=float, default=1.5)
    parser.add_argument("--video-scale", type=float, default=1.5)
    parser.add_argument("--output", type=Path, default=Path("runs/sampling"))
    args = parser.parse_args(argv)
    pipe = pipeline.load(args.model)
    reference = dict(
        steps=20, sampler="ddim", text_scale=args.text_scale, video_scale=args.video_scale
    )
    configurations = {
        name: EditSettings(**reference | changes).resolve(pipe.folder)
        for name, changes in CONFIGURATIONS.items()
    }
    first = next(iter(configurations.values()))
    specs = list(shapes_benchmark.specs(KINDS, args.count, first.size, first.frames))
    edits = {name: shapes_benchmark.editor(pipe, s) for name, s in configurations.items()}
    with Progress("edits") as progress:
        items = shapes_benchmark.run_benchmark(
            edits, specs, args.output / "items.jsonl", None, progress
        )
    seconds = time_edits(edits, triplet(specs[0][2]))
    passed = {
        name: np.array([item.passed for item in items if item.editor == name], float)
        for name in configurations
    }
    print("| sampling | evaluations | seconds | passed | change, points [95%] |")
    print("|---|---|---|---|---|")
    for name, settings in configurations.items():
        change = "" if settings is first else change_cell(passed[name], next(iter(passed.values())))
        count = evaluations(settings)
        ratio = evaluations(first) / count
        print(
            f"| {name} | {count} ({ratio:.1f} x fewer) | {seconds[name]:.2f} | "
            f"{100 * passed[name].mean():.1f}% | {change} |"
        )


def change_cell(passed: np.ndarray, reference: np.ndarray) -> str:
    """The paired difference of success in percentage points, with its 95% interval."""
    difference = passed - reference
    low, high = bootstrap_interval(difference, lambda resampled: 100 * resampled.mean(-1))
    return f"{100 * difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
