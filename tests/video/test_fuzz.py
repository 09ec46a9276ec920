"""Mutated media files: a right result or one line, no traceback, no hang, bounded memory."""

import io
import itertools
import json
import random
import resource
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.video.write import plan_sound, write_clip
from tests.support.media import MEDIA

SECONDS = 20  # for one file
MEMORY = 2 * 2**30  # bytes of address space above what the imports take
IMAGES = (".png", ".jpg", ".gif", ".apng", ".tif")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mov", ".h264", ".mjpeg")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flipped bytes, cut ends, removed, repeated and zeroed blocks, wild four-byte numbers."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        kind = rng.randrange(6)
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(min(len(out), 2000))
        size = rng.choice([1, 4, 64, 1000])
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            del out[max(1, at) :]
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            out[at : at + size] = bytes(len(out[at : at + size]))
        else:
            out[at : at + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x01"])
        if len(out) < 16:
            break
    return bytes(out)


def run_one(path: Path, folder: Path) -> str:
    """Reads and writes a file as `edit` does; returns "read" or the message of the error."""
    try:
        clip = open_clip(path)
        frames = []
        for frame in clip.frames():
            frames.append(frame)
            if len(frames) == 50:
                break
        times = [frame.time for frame in frames]
        assert all(b > a for a, b in itertools.pairwise(times)), "times increase"
        assert {frame.pixels.shape for frame in frames} == {(clip.height, clip.width, 3)}
        rate = min(max(clip.rate, Fraction(1)), Fraction(120))
        output = folder / "out.mp4"
        write_clip(output, [f.pixels for f in frames], times, rate, plan_sound(output, clip))
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return "read"


def batch(kind: str, seed: int, count: int, folder: Path) -> None:
    """The child process: prints a JSON line a file."""
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("hangs")))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    suffixes = IMAGES if kind == "images" else VIDEOS
    sources = sorted(file for file in MEDIA.iterdir() if file.suffix in suffixes)
    rng = random.Random(seed)
    for number in range(count):
        source = rng.choice(sources)
        path = folder / f"{number}{source.suffix}"
        path.write_bytes(mutate(source.read_bytes(), rng))
        print(json.dumps({"file": source.name, "number": number}), flush=True)
        signal.alarm(SECONDS)
        try:
            outcome = run_one(path, folder)
        except Exception as error:  # what no user must see
            outcome = f"TRACEBACK {type(error).__name__}: {error}"
        signal.alarm(0)
        print(json.dumps({"outcome": outcome}), flush=True)
        path.unlink()


def fuzz(kind: str, seed: int, count: int, folder: Path) -> dict[str, int]:
    """Counts of files read and refused; fails on anything else."""
    words = [
        sys.executable,
        "-m",
        "tests.video.test_fuzz",
        kind,
        str(seed),
        str(count),
        str(folder),
    ]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=SECONDS * count,
    )
    lines = [json.loads(line) for line in io.StringIO(done.stdout) if line.startswith("{")]
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-2000:])
    outcomes = [line["outcome"] for line in lines if "outcome" in line]
    faults = [
        (before, after)
        for before, after in itertools.pairwise(lines)
        if str(after.get("outcome", "")).startswith("TRACEBACK")
    ]
    assert not faults, faults[:5]
    assert len(outcomes) == count
    read = outcomes.count("read")
    return {"read": read, "refused": count - read}


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_mutated_files(tmp_path, kind):
    counts = fuzz(kind, 0, 20, tmp_path)
    assert counts["read"] + counts["refused"] == 20


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("images", 200), ("videos", 500)])
def test_many_mutated_files(tmp_path, kind, count):
    print(kind, fuzz(kind, 1, count, tmp_path))


if __name__ == "__main__":
    batch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
