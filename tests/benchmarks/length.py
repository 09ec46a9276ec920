"""Times edits of clips of several lengths and measures their memory.

    python -m tests.benchmarks.length --lengths 16 64 256 1024   # --model: default the embedded one

Long clips are edited in windows, so time should be linear in the length and memory constant. Each
length runs in a process of its own, on a stream of frames, after a short edit that compiles
everything. The lengths take turns, and the smallest time and memory of --repeats rounds count,
because load of the machine only adds to them. Windows overlap and the last one is moved back, so a
short clip has more windows per frame. The last line has the spread between lengths of the time per
frame, the time per window, and the memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.video import windows
from ivid2vid_jax.video.fit import ResizePlan

# Most frames that the autoencoder processes at once; the last chunk may need a program of its own.
CHUNK = 16


def edit(pipe: pipeline.Pipeline, settings: pipeline.EditSettings, frames: int) -> float:
    """Seconds of an edit of random frames; the results are discarded one by one."""
    rng, size = np.random.default_rng(0), settings.size
    stream = (rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(frames))
    fit = ResizePlan.plan((size, size), size, pipe.factor)
    start = time.perf_counter()
    for _ in pipe.edit_frames(stream, "make it grey", settings, fit):
        pass
    return time.perf_counter() - start


def measure(model: str | None, frames: int) -> dict:
    """Time and peak memory of an edit in this process."""
    pipe = pipeline.load(model)
    settings = pipeline.EditSettings().resolve(pipe.folder)
    # a short edit of the same programs: one window or several, and an equal last chunk
    short = -(-2 * settings.frames // CHUNK) * CHUNK + frames % CHUNK
    edit(pipe, settings, min(frames, short))
    seconds = edit(pipe, settings, frames)
    count = len(windows.plan_windows(frames, settings.frames))
    return dict(
        frames=frames,
        windows=count,
        seconds=seconds,
        seconds_a_frame=seconds / frames,
        seconds_a_window=seconds / count,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def measure_in_process(model: str | None, frames: int) -> dict:
    """`measure` in a process of its own."""
    options = ["--one", str(frames), *(["--model", model] if model else [])]
    command = [sys.executable, "-m", "tests.benchmarks.length", *options]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def spread(values: list[float]) -> float:
    """How far the largest value exceeds the smallest, as a share of it."""
    return max(values) / min(values) - 1


def main(argv: list[str] | None = None) -> None:
    """Prints a JSON line for each edit, for the smallest values of each length, and the spreads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure(args.model, args.one)))
        return
    runs: dict[int, list[dict]] = {frames: [] for frames in args.lengths}
    for _ in range(args.repeats):
        for frames, results in runs.items():
            results.append(measure_in_process(args.model, frames))
            print(json.dumps(results[-1]), flush=True)
    smallest = [
        {name: min(result[name] for result in results) for name in results[0]}
        for results in runs.values()
    ]
    for result in smallest:
        print(json.dumps({"least": result}))
    spreads = {
        f"{name}_spread": spread([result[name] for result in smallest])
        for name in ("seconds_a_frame", "seconds_a_window", "peak_mib")
    }
    print(json.dumps(spreads))


if __name__ == "__main__":
    main()
