"""Time and memory of an edit against the clip's length: linear and flat, for long clips go through windows.

    python -m tests.benchmarks.length --lengths 16 64 256 1024          # the embedded pipeline; --model for another

Each length is edited in a process of its own, from a stream of frames; a short edit first, so that nothing is compiled on the clock. All lengths take
turns, and of --repeats rounds the least time and memory count: what others do on the machine only adds. Windows overlap, and the last one is moved back, so
a short clip has more of them a frame: the last line says how far lengths differ in time a frame, time a window, and memory.
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

CHUNK = 16  # most frames that go through the autoencoder at once; the last chunk may be a program of its own


def edit(pipe, settings, frames: int) -> float:
    """Seconds of an edit of `frames` noisy frames, whose results are thrown away one by one."""
    rng = np.random.default_rng(0)
    stream = (
        rng.integers(0, 256, (settings.size, settings.size, 3), np.uint8) for _ in range(frames)
    )
    begin = time.perf_counter()
    for _ in pipe.edit_frames(
        stream,
        "make it grey",
        settings,
        ResizePlan.plan((settings.size, settings.size), settings.size, pipe.factor),
    ):
        pass
    return time.perf_counter() - begin


def one(model: str | None, frames: int) -> dict:
    pipe = pipeline.load(model)
    settings = pipeline.EditSettings().resolve(pipe.folder)
    short = (
        -(-2 * settings.frames // CHUNK) * CHUNK + frames % CHUNK
    )  # the same programs run: one window or several, the same last chunk
    edit(pipe, settings, min(frames, short))
    seconds, cut = edit(pipe, settings, frames), len(windows.plan_windows(frames, settings.frames))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return dict(
        frames=frames,
        windows=cut,
        seconds=seconds,
        seconds_a_frame=seconds / frames,
        seconds_a_window=seconds / cut,
        peak_mib=peak,
    )


def spread(values: list[float]) -> float:
    """How far the largest is above the smallest."""
    return max(values) / min(values) - 1


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(one(args.model, args.one)))
        return
    runs = {frames: [] for frames in args.lengths}
    for _ in range(args.repeats):
        for frames, done in runs.items():
            words = [
                sys.executable,
                "-m",
                "tests.benchmarks.length",
                "--one",
                str(frames),
                *(["--model", args.model] if args.model else []),
            ]
            done.append(
                json.loads(
                    subprocess.run(
                        words, check=True, stdout=subprocess.PIPE, text=True
                    ).stdout.splitlines()[-1]
                )
            )
            print(json.dumps(done[-1]), flush=True)
    found = [{name: min(each[name] for each in done) for name in done[0]} for done in runs.values()]
    for each in found:
        print(json.dumps({"least": each}))
    print(
        json.dumps(
            {
                f"{name}_spread": spread([each[name] for each in found])
                for name in ("seconds_a_frame", "seconds_a_window", "peak_mib")
            }
        )
    )


if __name__ == "__main__":
    main()
