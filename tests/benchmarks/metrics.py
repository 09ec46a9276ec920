"""Frames/s of each metric of the evaluation, and the peak memory of a whole report.

    python -m tests.benchmarks.metrics --size 64 --frames 16                       # each metric that needs no weights
    python -m tests.benchmarks.metrics --clip-model shapes-clip --random-inception # CLIP's and Inception's too; the latter with random weights: speed alone
    python -m tests.benchmarks.metrics --report 1000                               # `evaluate` on so many 64x64 clips of 16 frames, from disk

A metric's time is that of a pair of clips, source and edit, anew for each repeat; told are edited frames a second of the median, by the clock and by the
processor's time of this process (all its threads), which other work on the machine does not touch.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ivid2vid_jax.evaluation.metrics import METRICS, Pair
from tests.support.clips import moving


def frames_per_second(name: str, measure, frames: int, repeats: int) -> dict[str, float]:
    measure()  # compiles
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter(), time.process_time()
        measure()
        seconds.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    clock, processor = frames / np.median(seconds, axis=0)
    print(
        f"{name:20} {clock:10.1f} frames/s {processor:10.1f} frames/s of processor time", flush=True
    )
    return {"clock": float(clock), "processor": float(processor)}


def metrics(args) -> dict[str, dict[str, float]]:
    source, edited = (moving(2, 1, args.frames, args.size, seed) for seed in (0, 1))
    mask = np.zeros(source.shape[:3], bool)
    mask[:, : args.size // 2] = True
    clip = None
    if args.clip_model:
        from ivid2vid_jax.evaluation.clip_scores import load_clip

        clip = load_clip(args.clip_model)
    found = {}
    for name, metric in METRICS.items():
        if metric.measure and (clip or not metric.needs):
            found[name] = frames_per_second(
                name,
                lambda metric=metric: metric.measure(Pair(source, edited, mask, ("a", "b"), clip)),
                args.frames,
                args.repeats,
            )
    if args.random_inception:
        net = inception(args)
        found["features"] = frames_per_second(
            "features", lambda: net.features(edited), args.frames, args.repeats
        )
    return found


def inception(args):
    import torch

    from ivid2vid_jax.evaluation import inception as module
    from tests.support.inception_reference import random_weights

    file = Path(args.folder) / module.FILE
    torch.save(random_weights(), file)
    module.SHA256 = module.file_sha256(file)
    return module.Inception(file)


def report(args) -> dict[str, float]:
    """Clips written once, then judged by the command in a process of its own."""
    folder = Path(args.folder)
    from PIL import Image

    rows = ["video,instruction"]
    for i in range(args.report):
        for side, seed in (("data", i), ("edited", i + 1)):
            home = folder / side / f"clip{i:05d}"
            home.mkdir(parents=True)
            for t, frame in enumerate(moving(1 + i % 3, i % 2, args.frames, args.size, seed % 17)):
                Image.fromarray(frame).save(home / f"{t:02d}.png", compress_level=1)
        rows.append(f"clip{i:05d},go")
    (folder / "data" / "instructions.csv").write_text("\n".join(rows) + "\n")
    begin = time.perf_counter()
    words = ["--edited", folder / "edited", "--data", folder / "data", "--output", folder / "out"]
    subprocess.run([sys.executable, "-m", "ivid2vid_jax.evaluate", *map(str, words)], check=True)
    seconds, peak = (
        time.perf_counter() - begin,
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
    )
    page = (folder / "out" / "index.html").stat().st_size / 2**20
    found = {
        "clips": args.report,
        "seconds": seconds,
        "clips_per_second": args.report / seconds,
        "peak_MiB": peak,
        "page_MiB": page,
    }
    print(json.dumps(found, indent=2))
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("size", 64), ("frames", 16), ("repeats", 5), ("report", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--clip-model")
    parser.add_argument("--random-inception", action="store_true")
    parser.add_argument("--json", type=Path, help="writes the numbers here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as args.folder:
        found = report(args) if args.report else metrics(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
