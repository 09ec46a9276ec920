"""Reads 1080p H.264 in turns with the ffmpeg command line, and measures memory by length.

    python -m tests.benchmarks.video_read                # needs Debian's ffmpeg
    python -m tests.benchmarks.video_read --minutes 10   # memory: 10 s against 10 minutes

Both decode with as many threads and give RGB frames of the same size: ours to numpy arrays, ffmpeg
to /dev/null. Sizes are the clip's own and the model's (--size pixels on the longer side). The
ratio is ffmpeg's time by ours in each turn, so above 1 ours is faster. Memory is that of a process
of its own, which reads the clip and keeps no frame.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from ivid2vid_jax.video.fit import ResizePlan
from ivid2vid_jax.video.read import open_clip

FFMPEG = ["ffmpeg", "-nostdin", "-y", "-v", "error"]


def make_clip(path: Path, seconds: int) -> None:
    """A moving test pattern with a little noise, 1920x1080 at 30 frames/s."""
    source = f"testsrc2=size=1920x1080:rate=30:duration={seconds}"
    encoder = ["-vf", "noise=alls=3:allf=t", "-c:v", "libx264", "-preset", "fast", "-crf", "20"]
    subprocess.run([*FFMPEG, "-f", "lavfi", "-i", source, *encoder, path], check=True)


def read(path: Path, size: int | None) -> int:
    """Reads a clip as `edit` does; returns the number of frames."""
    clip = open_clip(path)
    plan = ResizePlan.plan((clip.height, clip.width), size or max(clip.height, clip.width), 1)
    return sum(1 for _ in clip.frames(plan.inner))


def read_by_ffmpeg(path: Path, size: tuple[int, int], threads: int) -> None:
    """Reads a clip by the ffmpeg command line; size: (height, width)."""
    scale = f"scale={size[1]}:{size[0]}"
    command = [*FFMPEG, "-threads", str(threads), "-i", path, "-vf", scale]
    output = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    subprocess.run([*command, *output], check=True, stdout=subprocess.DEVNULL)


def decoder_threads(path: Path) -> int:
    """Threads that FFmpeg's decoder takes by default, which our reader leaves to it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        next(container.decode(stream))
        return stream.codec_context.thread_count


def compare(path: Path, size: int | None, repeats: int) -> dict:
    """Median seconds of both, and the quartiles of ffmpeg's time by ours."""
    clip, threads = open_clip(path), decoder_threads(path)
    inner = ResizePlan.plan(
        (clip.height, clip.width), size or max(clip.height, clip.width), 1
    ).inner
    seconds: dict[str, list[float]] = {"ours": [], "ffmpeg": []}
    for turn in range(repeats + 1):  # the first warms up the file cache
        for name in ("ours", "ffmpeg"):
            start = time.perf_counter()
            if name == "ours":
                read(path, size)
            else:
                read_by_ffmpeg(path, inner, threads)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    ratios = np.array(seconds["ffmpeg"]) / np.array(seconds["ours"])
    medians = {f"{name}_s": round(float(np.median(times)), 2) for name, times in seconds.items()}
    quartiles = [round(float(q), 2) for q in np.percentile(ratios, [25, 50, 75])]
    return dict(size=f"{inner[1]}x{inner[0]}", threads=threads, **medians, ratio=quartiles)


def peak_mib(path: Path, size: int) -> float:
    """Peak memory of a process that reads a clip."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.video_read",
        "--read",
        path,
        "--size",
        str(size),
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return float(lines[-1])


def main() -> None:
    """Prints a JSON line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="pixels of the longer side")
    parser.add_argument("--seconds", type=int, default=10, help="length of the clip")
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--minutes", type=int, help="measure memory at this length instead")
    parser.add_argument("--read", type=Path, help="read this file, and print the peak memory")
    args = parser.parse_args()
    if args.read:
        read(args.read, args.size)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        make_clip(path, args.seconds)
        if args.minutes is None:
            for size in (None, args.size):
                print(json.dumps(compare(path, size, args.repeats)), flush=True)
            return
        long, loops = Path(folder) / "long.mp4", args.minutes * 60 // args.seconds - 1
        loop = ["-stream_loop", str(loops), "-i", path, "-c", "copy", long]
        subprocess.run([*FFMPEG, *loop], check=True)
        for name, file in ((f"{args.seconds} s", path), (f"{args.minutes} min", long)):
            print(
                json.dumps(dict(length=name, peak_mib=round(peak_mib(file, args.size)))), flush=True
            )


if __name__ == "__main__":
    main()
