"""Faster sampling: what fewer steps, other samplers and guidance in an interval cost in edit success, on the shapes world.

    python -m tests.benchmarks.sampling --count 20 --output runs/sampling

The first point is the reference: all three branches at every step. Work is counted in evaluations of the net, which is what an edit spends its time on;
seconds are those of one clip's whole edit, autoencoder included, the median of three in turns with the other points'. Every point edits the same clips, and
the change of success is that of pairs, with its 95% interval. A stopped run goes on.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from ivid2vid_jax.data.shapes import KINDS, triplet
from ivid2vid_jax.diffusion.guidance import guidance_branches
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.utils.intervals import bootstrap_interval
from ivid2vid_jax.utils.progress import Progress

POINTS = {
    "ddim, 20 steps, guided throughout": {},
    "ddim, 10 steps": dict(steps=10),
    "dpm++, 10 steps": dict(sampler="dpm++", steps=10),
    "dpm++, 6 steps": dict(sampler="dpm++", steps=6),
    "guided in the first half": dict(guide_to=0.5),
    "guided in the first quarter": dict(guide_to=0.25),
    "dpm++, 10 steps, guided in the first half": dict(sampler="dpm++", steps=10, guide_to=0.5),
    "not guided": dict(text_scale=1.0, video_scale=1.0),
}


def evaluations(s: EditSettings) -> int:
    """Of the net, for one window."""
    guided = sum(s.guide_from <= i / s.steps < s.guide_to for i in range(s.steps))
    return guided * len(guidance_branches(s.text_scale, s.video_scale)) + s.steps - guided


def seconds(edits: dict, truth, repeats: int = 3) -> dict[str, float]:
    """Name -> median seconds of an edit of this triplet's source, everything compiled."""
    for edit in edits.values():
        edit(truth)
    found = {name: [] for name in edits}
    for _ in range(repeats):
        for name, edit in edits.items():
            begin = time.perf_counter()
            edit(truth)
            found[name].append(time.perf_counter() - begin)
    return {name: float(np.median(each)) for name, each in found.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=20, help="clips of each kind")
    parser.add_argument("--text-scale", type=float, default=1.5)
    parser.add_argument("--video-scale", type=float, default=1.5)
    parser.add_argument("--output", type=Path, default=Path("runs/sampling"))
    args = parser.parse_args(argv)
    pipe = pipeline.load(args.model)
    reference = dict(
        steps=20, sampler="ddim", text_scale=args.text_scale, video_scale=args.video_scale
    )
    points = {
        name: EditSettings(**reference | changes).resolve(pipe.folder)
        for name, changes in POINTS.items()
    }
    first = next(iter(points.values()))
    wanted = list(shapes_benchmark.specs(KINDS, args.count, first.size, first.frames))
    edits = {name: shapes_benchmark.editor(pipe, s) for name, s in points.items()}
    with Progress("edits") as progress:
        items = shapes_benchmark.run_benchmark(
            edits, wanted, args.output / "items.jsonl", None, progress
        )
    took = seconds(edits, triplet(wanted[0][2]))
    passed = {
        name: np.array([item.passed for item in items if item.editor == name], float)
        for name in points
    }
    base = next(iter(passed.values()))
    print(
        "| sampling | evaluations | seconds | passed | change, points [95%] |\n|---|---|---|---|---|"
    )
    for name, s in points.items():
        low, high = bootstrap_interval(passed[name] - base, lambda drawn: 100 * drawn.mean(-1))
        change = (
            ""
            if s is first
            else f"{100 * (passed[name] - base).mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        )
        print(
            f"| {name} | {evaluations(s)} ({evaluations(first) / evaluations(s):.1f} x fewer) | {took[name]:.2f} | {100 * passed[name].mean():.1f}% | {change} |"
        )


if __name__ == "__main__":
    main()
