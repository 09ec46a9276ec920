"""Speed of each evaluation metric, and the peak memory of a whole report.

Each metric that needs no weights:

    python -m tests.benchmarks.metrics --size 64 --frames 16

Also CLIP's and Inception's, the latter with random weights:

    python -m tests.benchmarks.metrics --clip-model shapes-clip --random-inception

`evaluate` on 1000 clips from disk:

    python -m tests.benchmarks.metrics --report 1000

A metric is computed on a pair of clips, source and edit, without reuse between repeats. Printed are
edited frames per second of the median repeat, by wall-clock time and by the CPU time of this
process (all its threads), which does not depend on other load.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ivid2vid_jax.evaluation.metrics import METRICS, Pair
from tests.support.clips import moving


def frames_per_second(name: str, measure: Callable, frames: int, repeats: int) -> dict[str, float]:
    """Times a metric and prints its speed."""
    measure()  # compiles
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        measure()
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    clock, processor = frames / np.median(seconds, axis=0)
    print(f"{name:20} {clock:10.1f} frames/s {processor:10.1f} frames per CPU second", flush=True)
    return {"clock": float(clock), "processor": float(processor)}


def metrics(args) -> dict[str, dict[str, float]]:
    """Times every metric whose weights are given."""
    source, edited = (moving(2, 1, args.frames, args.size, seed) for seed in (0, 1))
    mask = np.zeros(source.shape[:3], bool)
    mask[:, : args.size // 2] = True
    clip = None
    if args.clip_model:
        from ivid2vid_jax.evaluation.clip_scores import load_clip

        clip = load_clip(args.clip_model)
    results = {}
    for name, metric in METRICS.items():
        if metric.measure and (clip or not metric.needs):
            results[name] = frames_per_second(
                name,
                lambda metric=metric: metric.measure(Pair(source, edited, mask, ("a", "b"), clip)),
                args.frames,
                args.repeats,
            )
    if args.random_inception:
        net = random_inception(Path(args.folder))
        results["features"] = frames_per_second(
            "features", lambda: net.features(edited), args.frames, args.repeats
        )
    return results


def random_inception(folder: Path):
    """An Inception network with random weights."""
    import torch

    from ivid2vid_jax.evaluation import inception
    from tests.support.inception_reference import random_weights

    file = folder / inception.FILE
    torch.save(random_weights(), file)
    inception.SHA256 = inception.file_sha256(file)
    return inception.Inception(file)


def write_clips(folder: Path, count: int, frames: int, size: int) -> None:
    """Writes a set of clips in folder/data and their edits in folder/edited."""
    rows = ["video,instruction"]
    for i in range(count):
        for side, seed in (("data", i), ("edited", i + 1)):
            clip_folder = folder / side / f"clip{i:05d}"
            clip_folder.mkdir(parents=True)
            for t, frame in enumerate(moving(1 + i % 3, i % 2, frames, size, seed % 17)):
                Image.fromarray(frame).save(clip_folder / f"{t:02d}.png", compress_level=1)
        rows.append(f"clip{i:05d},go")
    (folder / "data" / "instructions.csv").write_text("\n".join(rows) + "\n")


def report(args) -> dict[str, float]:
    """Writes clips once, then times the command in its own process."""
    folder = Path(args.folder)
    write_clips(folder, args.report, args.frames, args.size)
    start = time.perf_counter()
    words = ["--edited", folder / "edited", "--data", folder / "data", "--output", folder / "out"]
    subprocess.run([sys.executable, "-m", "ivid2vid_jax.evaluate", *map(str, words)], check=True)
    seconds = time.perf_counter() - start
    result = {
        "clips": args.report,
        "seconds": seconds,
        "clips_per_second": args.report / seconds,
        "peak_MiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
        "page_MiB": (folder / "out" / "index.html").stat().st_size / 2**20,
    }
    print(json.dumps(result, indent=2))
    return result


def main():
    """Parses the command line and runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("size", 64), ("frames", 16), ("repeats", 5), ("report", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--clip-model")
    parser.add_argument("--random-inception", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as args.folder:
        result = report(args) if args.report else metrics(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
