"""What a training run tells: RUN/metrics.jsonl (the truth), RUN/tensorboard (a view of it), one line in the terminal; clock and memory."""

import json
import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from ivid2vid_jax.utils.atomic import atomic_write_text

log = logging.getLogger(__name__)

RESERVED = {"step", "kind", "time"}
QUIET = 10.0  # s between two lines where the terminal is none
MIB = 2**20


class MetricsLog:
    """The log of the run folder `run`; use it as a context manager.

    resumed_at: the step of the checkpoint the run goes on from, 0 for a new run: what was logged after it will be logged again and is dropped.
    active: false in all processes but the first, where nothing is written.
    """

    def __init__(self, run: Path, total_steps: int, resumed_at: int = 0, active: bool = True):
        self.total_steps, self.active = total_steps, active
        self.shown, self.pending = (
            -float("inf"),
            None,
        )  # when the last line was printed; the one held back since
        self.file = self.board = None
        if active:
            run.mkdir(parents=True, exist_ok=True)
            path = run / "metrics.jsonl"
            truncate(path, resumed_at)
            self.file = open(path, "a", encoding="utf-8")
            self.board = open_tensorboard(run / "tensorboard", resumed_at)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def write(self, step: int, values: dict[str, float], kind: str = "train") -> None:
        """Appends one JSON line {step, kind, time (unix, s), **values}; numbers come back as the same bits."""
        if not self.active:
            return
        if RESERVED & set(values):
            raise ValueError(
                f"{sorted(RESERVED & set(values))} are the log's own words; call the values otherwise"
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
        """Tells the terminal (stderr) of a step; known names: loss, lr, step_time, clips_per_s, data_wait, eta.

        A terminal shows one line that is rewritten; elsewhere a line is printed at most every 10 s, and always the first and the last.
        """
        if not self.active:
            return
        text = summary(step, self.total_steps, values)
        if sys.stderr.isatty():
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
            self.pending = ""  # the end of the line
        elif step >= self.total_steps or time.monotonic() - self.shown >= QUIET:
            print(text, file=sys.stderr, flush=True)
            self.shown, self.pending = time.monotonic(), None
        else:
            self.pending = text

    def close(self) -> None:
        """Prints the line that was held back, and closes the files."""
        if self.pending is not None:
            print(self.pending, file=sys.stderr, flush=True)
            self.pending = None
        for output in (self.file, self.board):
            if output:
                output.close()


def truncate(path: Path, step: int) -> None:
    """Drops the lines after `step`, and those a kill left torn; whole or not at all."""
    if not path.exists():
        return
    atomic_write_text(
        path,
        "".join(json.dumps(record) + "\n" for record in records(path) if record["step"] <= step),
    )


def records(path: Path) -> Iterator[dict]:
    """The lines of a log; one that is not whole (the process was killed while it wrote) is passed over, with a note."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                yield json.loads(text)
            except ValueError:
                log.warning("%s, line %d: is not whole and is left out", path, number)


def read_metrics(run: Path, kind: str | None = None) -> list[dict]:
    """The lines of RUN/metrics.jsonl in the order they were written, of one kind or of all; none where there is no log yet."""
    path = run / "metrics.jsonl"
    return (
        [record for record in records(path) if kind in (None, record["kind"])]
        if path.exists()
        else []
    )


def open_tensorboard(folder: Path, resumed_at: int):
    """A TensorBoard writer, or None without tensorboardX; events after `resumed_at` are hidden by the new ones."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        log.info("tensorboardX is not installed: metrics go to metrics.jsonl alone")
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1)


def summary(step: int, total_steps: int, values: dict[str, float]) -> str:
    """`step 120/2000  loss 0.1234  lr 1e-4  2.1 s/step  7.6 clips/s  data wait 0.4%  ETA 1 h 04 min`, of what `values` holds."""
    formats = {
        "loss": lambda v: f"loss {v:.4f}",
        "lr": lambda v: f"lr {scientific(v)}",
        "step_time": lambda v: f"{v:.2g} s/step" if v < 10 else f"{v:.0f} s/step",
        "clips_per_s": lambda v: f"{v:.1f} clips/s",
        "data_wait": lambda v: f"data wait {100 * v:.1f}%",
        "eta": lambda v: f"ETA {duration(v)}",
    }
    parts = [form(float(values[name])) for name, form in formats.items() if name in values]
    return "  ".join([f"step {step}/{total_steps}", *parts])


def scientific(value: float) -> str:
    """1e-4, 3.25e-5, 0."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def duration(seconds: float) -> str:
    """45 s, 12 min, 1 h 04 min, 3 d 02 h."""
    seconds, minutes = round(seconds), round(seconds / 60)
    if seconds < 60:
        return f"{seconds} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


class Clock:
    """Times of the last `window` steps, pauses left out. It starts when made; `resumed_at` is the step that is done by then.

    now: a monotonic clock, s.
    """

    def __init__(
        self,
        total_steps: int,
        resumed_at: int = 0,
        window: int = 20,
        now: Callable[[], float] = time.monotonic,
    ):
        self.total_steps, self.now = total_steps, now
        self.lost = self.waited = 0.0  # s in pauses, s waiting for data
        self.stopped_at = None
        self.marks = deque([(resumed_at, self.running(), 0.0)], maxlen=window + 1)

    def running(self) -> float:
        """Seconds outside of pauses; stands still within one."""
        return (self.now() if self.stopped_at is None else self.stopped_at) - self.lost

    @contextmanager
    def pause(self):
        """Compiling, saves, evaluation, samples: no part of a step. May be nested."""
        if self.stopped_at is not None:
            yield
            return
        self.stopped_at = self.now()
        try:
            yield
        finally:
            self.lost += self.now() - self.stopped_at
            self.stopped_at = None

    @contextmanager
    def data(self):
        """Waiting for the loader: a part of the step, told apart."""
        begin = self.running()
        try:
            yield
        finally:
            self.waited += self.running() - begin

    def tick(self, step: int) -> dict[str, float]:
        """At the end of each step: step_time (s, mean of the window), data_wait (share of it, 0 to 1), eta (s)."""
        self.marks.append((step, self.running(), self.waited))
        first, begin, waited = self.marks[0]
        spent = self.marks[-1][1] - begin
        step_time = spent / (step - first)
        share = (self.waited - waited) / spent if spent else 0.0
        return {
            "step_time": step_time,
            "data_wait": share,
            "eta": step_time * (self.total_steps - step),
        }


class Trace:
    """trace(step), called before each step, traces `count` steps into `folder` once the first SETTLED ones are done; close() ends it early."""

    SETTLED = 5

    def __init__(self, folder: Path, count: int, resumed_at: int):
        self.folder, self.count, self.running = folder, count, False
        self.first = resumed_at + 1 + self.SETTLED

    def __call__(self, step: int) -> None:
        if self.count and step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif self.running and step == self.first + self.count:
            self.close()

    def close(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            log.info(
                "%d steps traced: tensorboard --logdir %s (with tensorboard-plugin-profile), or xprof",
                self.count,
                self.folder,
            )


def memory() -> dict[str, float]:
    """MiB: device_peak (the fullest local device; left out where the backend does not tell, as on CPU) and host (resident now)."""
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()
    ]
    found = {"device_peak": max(peaks) / MIB} if any(peaks) else {}
    return found | {"host": resident() / MIB}


def resident() -> int:
    """Bytes of this process in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc: the peak instead, which macOS gives in bytes and others in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
