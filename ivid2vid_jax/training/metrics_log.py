"""Metrics of a training run: RUN/metrics.jsonl, TensorBoard, the terminal's progress line; timing.

metrics.jsonl is the complete record; RUN/tensorboard shows the same values.
"""

import json
import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from ivid2vid_jax.utils.atomic import atomic_write_text

log = logging.getLogger(__name__)

RESERVED = {"step", "kind", "time"}  # keys of every line of metrics.jsonl
LINE_INTERVAL = 10.0  # s, minimum between two progress lines if stderr is not a terminal
MIB = 2**20


class MetricsLog:
    """The metrics log of a run folder; a context manager."""

    def __init__(self, run: Path, total_steps: int, resumed_at: int = 0, active: bool = True):
        """Opens the log.

        Args:
            run: the RUN folder.
            total_steps: number of steps of the whole run, for the progress line.
            resumed_at: step of the checkpoint that the run resumes from, 0 for a new run. Lines of
                later steps are dropped, because these steps run again.
            active: false in all processes but the first: then nothing is written.
        """
        self.total_steps, self.active = total_steps, active
        self.last_printed = -float("inf")  # monotonic time of the last progress line
        self.pending: str | None = None  # the newest progress line, if it is not printed yet
        self.file: IO[str] | None = None
        self.board: Any = None
        if active:
            run.mkdir(parents=True, exist_ok=True)
            path = run / "metrics.jsonl"
            truncate(path, resumed_at)
            self.file = path.open("a", encoding="utf-8")
            self.board = open_tensorboard(run / "tensorboard", resumed_at)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def write(self, step: int, values: dict[str, float], kind: str = "train") -> None:
        """Appends the JSON line {step, kind, time (unix, s), **values}; reading it is exact."""
        if self.file is None:
            return
        if RESERVED & set(values):
            raise ValueError(
                f"{sorted(RESERVED & set(values))} are reserved keys of the metrics log; use other "
                "names"
            )
        values = {
            name: value if isinstance(value, int) else float(value)
            for name, value in values.items()
        }
        self.file.write(
            json.dumps({"step": int(step), "kind": kind, "time": time.time(), **values}) + "\n"
        )
        self.file.flush()
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def images(self, step: int, name: str, picture: Path) -> None:
        """Shows an image file in TensorBoard."""
        if self.board:
            from PIL import Image

            with Image.open(picture) as image:
                self.board.add_image(
                    name, np.asarray(image.convert("RGB")), step, dataformats="HWC"
                )

    def line(self, step: int, values: dict[str, float]) -> None:
        """Prints a step's progress line on stderr.

        In a terminal the line is overwritten by the next one. Elsewhere a line is printed at most
        every 10 s, and always for the first and the last step.

        Args:
            step: the step.
            values: of these loss, lr, step_time, clips_per_s, mfu, data_wait and eta are shown.
        """
        if not self.active:
            return
        text = summary(step, self.total_steps, values)
        if sys.stderr.isatty():
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
            self.pending = ""  # `close` ends the line
        elif step >= self.total_steps or time.monotonic() - self.last_printed >= LINE_INTERVAL:
            print(text, file=sys.stderr, flush=True)
            self.last_printed, self.pending = time.monotonic(), None
        else:
            self.pending = text

    def close(self) -> None:
        """Prints the pending progress line and closes the files."""
        if self.pending is not None:
            print(self.pending, file=sys.stderr, flush=True)
            self.pending = None
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()


def truncate(path: Path, step: int) -> None:
    """Atomically drops the lines of steps after `step`, and lines that a kill left incomplete."""
    if not path.exists():
        return
    atomic_write_text(
        path,
        "".join(json.dumps(record) + "\n" for record in records(path) if record["step"] <= step),
    )


def records(path: Path) -> Iterator[dict]:
    """The lines of a log; an incomplete line, left by a kill, is skipped with a warning."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                yield json.loads(text)
            except ValueError:
                log.warning("%s, line %d: is incomplete and is skipped", path, number)


def read_metrics(run: Path, kind: str | None = None) -> list[dict]:
    """The lines of RUN/metrics.jsonl in the order of writing; [] without a log.

    Args:
        run: the RUN folder.
        kind: "train" or "validation"; None for all.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    return [record for record in records(path) if kind in (None, record["kind"])]


def open_tensorboard(folder: Path, resumed_at: int) -> Any:
    """A TensorBoard writer, which hides older events after `resumed_at`; None if not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        log.info("tensorboardX is not installed: metrics are written to metrics.jsonl only")
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1)


def summary(step: int, total_steps: int, values: dict[str, float]) -> str:
    """The progress line, with those values that are given.

    For example:
    step 9/20  loss 0.1234  lr 1e-4  2.1 s/step  7.6 clips/s  MFU 41.2%  data wait 0.4%  ETA 23 s
    """
    formats = {
        "loss": lambda v: f"loss {v:.4f}",
        "lr": lambda v: f"lr {scientific(v)}",
        "step_time": lambda v: f"{v:.2g} s/step" if v < 10 else f"{v:.0f} s/step",
        "clips_per_s": lambda v: f"{v:.1f} clips/s",
        "mfu": lambda v: f"MFU {100 * v:.1f}%",
        "data_wait": lambda v: f"data wait {100 * v:.1f}%",
        "eta": lambda v: f"ETA {duration(v)}",
    }
    parts = [fmt(float(values[name])) for name, fmt in formats.items() if name in values]
    return "  ".join([f"step {step}/{total_steps}", *parts])


def scientific(value: float) -> str:
    """Formats a number as 1e-4, 3.25e-5 or 0."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Formats a time as 45 s, 12 min, 1 h 04 min or 3 d 02 h."""
    seconds, minutes = round(seconds), round(seconds / 60)
    if seconds < 60:
        return f"{seconds} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


class Clock:
    """Step times, without pauses; it starts when it is created."""

    def __init__(
        self,
        total_steps: int,
        resumed_at: int = 0,
        window: int = 20,
        now: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock.

        Args:
            total_steps: number of steps of the whole run, for the ETA.
            resumed_at: the last step that is done already.
            window: number of steps to average over.
            now: a monotonic clock, s.
        """
        self.total_steps, self.now = total_steps, now
        self.paused = self.waited = 0.0  # s in pauses, s waiting for data
        self.pause_start: float | None = None
        # (step, running time, waited) at the end of each step
        self.marks = deque([(resumed_at, self.running(), 0.0)], maxlen=window + 1)

    def running(self) -> float:
        """Seconds outside of pauses since the clock's origin; constant within a pause."""
        return (self.now() if self.pause_start is None else self.pause_start) - self.paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes compiling, saving, validation and sampling from step times. May be nested."""
        if self.pause_start is not None:
            yield
            return
        start = self.pause_start = self.now()
        try:
            yield
        finally:
            self.paused += self.now() - start
            self.pause_start = None

    @contextmanager
    def data(self) -> Iterator[None]:
        """Measures waiting for the loader, which is a part of the step time."""
        start = self.running()
        try:
            yield
        finally:
            self.waited += self.running() - start

    def tick(self, step: int) -> dict[str, float]:
        """Ends a step.

        Returns:
            step_time: s, mean over the window.
            data_wait: the share of it spent waiting for data, 0 to 1.
            eta: s until the last step.
        """
        self.marks.append((step, self.running(), self.waited))
        first_step, start, waited = self.marks[0]
        elapsed = self.marks[-1][1] - start
        step_time = elapsed / (step - first_step)
        data_wait = (self.waited - waited) / elapsed if elapsed else 0.0
        return {
            "step_time": step_time,
            "data_wait": data_wait,
            "eta": step_time * (self.total_steps - step),
        }


class Trace:
    """trace(step), called before each step, profiles `count` steps, the first SETTLED excluded."""

    SETTLED = 5  # steps after the start or a resume that are not profiled

    def __init__(self, folder: Path, count: int, resumed_at: int):
        """folder: of the profile. count: number of steps, 0 = none. resumed_at: the last step."""
        self.folder, self.count, self.running = folder, count, False
        self.first = resumed_at + 1 + self.SETTLED

    def __call__(self, step: int) -> None:
        """Starts or stops the profiler if `step` is the first one, or the one after the last."""
        if self.count and step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif self.running and step == self.first + self.count:
            self.close()

    def close(self) -> None:
        """Stops the profiler if it is running."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            log.info(
                "%d steps profiled: tensorboard --logdir %s (needs tensorboard-plugin-profile) "
                "or xprof",
                self.count,
                self.folder,
            )


def memory() -> dict[str, float]:
    """Memory in MiB.

    Returns:
        device_peak: of the fullest local device; absent if the backend does not report it (CPU).
        host: resident memory of this process.
    """
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()
    ]
    device = {"device_peak": max(peaks) / MIB} if any(peaks) else {}
    return device | {"host": resident_bytes() / MIB}


def resident_bytes() -> int:
    """Resident memory of this process; without /proc (macOS), its peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
