"""The metrics log survives kills and resumes; numbers are exact; the clock measures steps only."""

import io
import json
import logging
import math
import os
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.training import metrics_log
from ivid2vid_jax.training.metrics_log import (
    Clock,
    MetricsLog,
    Trace,
    memory,
    read_metrics,
    summary,
)


@pytest.fixture(autouse=True)
def board(monkeypatch):
    """A stand-in for tensorboardX; returns what was written, in order."""
    written = []

    class Writer:
        def __init__(self, folder, purge_step=None):
            written.append(("open", folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append(("scalar", name, value, step))

        def add_image(self, name, image, step, dataformats):
            written.append(("image", name, image, step, dataformats))

        def close(self):
            written.append(("close",))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    return written


def write_log(run, steps, **options):
    """Logs losses of steps, and "eval" lines of even ones; returns the file's path."""
    with MetricsLog(run, 100, **options) as log:
        for step in steps:
            log.write(step, {"loss": step / 3})
            if step % 2 == 0:
                log.write(step, {"psnr": float(step)}, kind="eval")
    return run / "metrics.jsonl"


def test_numbers_are_read_back_exactly(tmp_path):
    values = {
        "third": 1 / 3,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "single": np.float32(0.1),
        "device": jnp.float32(1) / 3,
        "count": 7,
    }
    with MetricsLog(tmp_path, 10) as log:
        log.write(3, values | {"bad": math.inf})
        (record,) = read_metrics(tmp_path)  # flushed before the log is closed
    assert (record["step"], record["kind"], record["bad"]) == (3, "train", math.inf)
    assert abs(record["time"] - metrics_log.time.time()) < 60
    assert all(record[name] == value for name, value in values.items())
    assert isinstance(record["count"], int) and np.float32(record["single"]) == np.float32(0.1)


def test_kinds_of_lines_and_reserved_keys(tmp_path):
    write_log(tmp_path, [1, 2])
    assert [(r["step"], r["kind"]) for r in read_metrics(tmp_path)] == [
        (1, "train"),
        (2, "train"),
        (2, "eval"),
    ]
    assert [r["psnr"] for r in read_metrics(tmp_path, "eval")] == [2.0]
    assert read_metrics(tmp_path / "none") == []
    with MetricsLog(tmp_path, 10) as log, pytest.raises(ValueError, match=r"'kind', 'time'"):
        log.write(1, {"time": 1.0, "kind": 2.0})


def test_a_resume_drops_later_lines_and_an_incomplete_one(tmp_path, caplog):
    path = write_log(tmp_path, range(1, 7))
    before = path.read_text().splitlines()
    path.write_text("\n".join(before) + '\n{"step": 7, "ki')
    assert [r["step"] for r in read_metrics(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]
    write_log(tmp_path, [5, 6, 7], resumed_at=4)
    assert [r["step"] for r in read_metrics(tmp_path, "train")] == [1, 2, 3, 4, 5, 6, 7]
    assert [r["step"] for r in read_metrics(tmp_path, "eval")] == [2, 4, 6]
    assert path.read_text().splitlines()[:6] == before[:6]
    assert "line 10: is incomplete" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_starts_an_empty_log(tmp_path):
    write_log(tmp_path, [1, 2])
    write_log(tmp_path, [1])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]


def test_a_kill_while_lines_are_dropped_leaves_the_old_log(tmp_path, monkeypatch):
    path = write_log(tmp_path, [1, 2, 3])
    before = path.read_text()

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill)
        MetricsLog(tmp_path, 10, resumed_at=1)
    assert path.read_text() == before
    write_log(tmp_path, [2], resumed_at=1)
    assert [r["step"] for r in read_metrics(tmp_path, "train")] == [1, 2]


def test_an_inactive_log_writes_nothing(tmp_path, capsys, board):
    with MetricsLog(tmp_path / "run", 10, active=False) as log:
        log.write(1, {"loss": 1.0})
        log.line(1, {"loss": 1.0})
        log.images(1, "sample", tmp_path / "none.png")
    assert not (tmp_path / "run").exists() and not board and capsys.readouterr().err == ""


def test_tensorboard_gets_the_same_values(tmp_path, board):
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(tmp_path / "picture.png")
    with MetricsLog(tmp_path, 10, resumed_at=4) as log:
        log.write(5, {"loss": 0.5})
        log.write(5, {"psnr": 20.0}, kind="eval")
        log.images(5, "sample", tmp_path / "picture.png")
    assert board[:3] == [
        ("open", str(tmp_path / "tensorboard"), 5),
        ("scalar", "train/loss", 0.5, 5),
        ("scalar", "eval/psnr", 20.0, 5),
    ]
    _, name, image, step, dataformats = board[3]
    assert (name, image.shape, image[0, 0, 0]) == ("sample", (4, 6, 3), 9)
    assert (step, dataformats) == (5, "HWC")
    assert board[4] == ("close",)


def test_without_tensorboardx_each_log_notes_it_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    caplog.set_level(logging.INFO)
    Image.new("RGB", (2, 2)).save(tmp_path / "picture.png")
    write_log(tmp_path, [1, 2, 3])
    with MetricsLog(tmp_path, 10, resumed_at=3) as log:
        log.images(3, "sample", tmp_path / "picture.png")
    assert caplog.text.count("tensorboardX is not installed") == 2
    assert len(read_metrics(tmp_path)) == 4


def test_the_progress_line():
    values = {
        "loss": 0.12341,
        "lr": 1e-4,
        "step_time": 2.1,
        "clips_per_s": 7.61,
        "mfu": 0.4123,
        "data_wait": 0.004,
        "eta": 3840.0,
        "grad_norm": 3.0,
    }
    expected = (
        "step 120/2000  loss 0.1234  lr 1e-4  2.1 s/step  7.6 clips/s  MFU 41.2%  "
        "data wait 0.4%  ETA 1 h 04 min"
    )
    assert summary(120, 2000, values) == expected
    assert summary(1, 2, {"lr": 0.0, "step_time": 12.3}) == "step 1/2  lr 0  12 s/step"
    assert [metrics_log.scientific(x) for x in (3.25e-5, 0.5, 2.0)] == ["3.25e-5", "5e-1", "2e0"]
    durations = {
        0.2: "0 s",
        59.4: "59 s",
        59.6: "1 min",
        3569: "59 min",
        3590: "1 h 00 min",
        47 * 3600: "47 h 00 min",
        50 * 3600: "2 d 02 h",
    }
    assert {seconds: metrics_log.duration(seconds) for seconds in durations} == durations


def progress_lines(tmp_path, monkeypatch, stream, times):
    """What a stream gets from steps, 20 in all, at the given seconds."""
    monkeypatch.setattr(sys, "stderr", stream)
    with MetricsLog(tmp_path, 20) as log:
        for step, now in enumerate(times, 1):
            monkeypatch.setattr(metrics_log.time, "monotonic", lambda now=now: now)
            log.line(step, {"loss": 1.0})
        assert step < log.total_steps or "step 20/20" in stream.getvalue(), (
            "the last line must not wait for the end of the run"
        )
    return stream.getvalue()


def printed_steps(text):
    return [int(line.split()[1].split("/")[0]) for line in text.splitlines()]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_a_line_at_most_every_ten_seconds(tmp_path, monkeypatch):
    """The first, then after 10 s; always the last of all 20, or the last before the run ends."""
    every_3_s = [1000 + 3 * i for i in range(20)]
    text = progress_lines(tmp_path, monkeypatch, io.StringIO(), every_3_s)
    assert printed_steps(text) == [1, 5, 9, 13, 17, 20]
    text = progress_lines(tmp_path, monkeypatch, io.StringIO(), every_3_s[:7])
    assert printed_steps(text) == [1, 5, 7]
    text = progress_lines(tmp_path, monkeypatch, io.StringIO(), [5.0, 5.1])
    assert text.count("\n") == 2, "also with a clock that starts near 0"


def test_a_terminal_gets_one_line_rewritten(tmp_path, monkeypatch):
    text = progress_lines(tmp_path, monkeypatch, Terminal(), [0.0, 0.1, 0.2])
    assert text.count("\r") == 3 and text.count("\n") == 1 and text.endswith("\n")


class FakeTime:
    """A clock that only `sleep` advances."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_the_clock_excludes_pauses_and_measures_waiting():
    time = FakeTime()
    clock = Clock(total_steps=100, resumed_at=10, now=time)
    with clock.pause():
        time.sleep(60)  # compiling
        with clock.pause(), clock.data():
            time.sleep(5)  # evaluation waits for its own data
        time.sleep(1)
    with clock.data():
        time.sleep(0.5)
    time.sleep(1.5)
    assert clock.tick(11) == pytest.approx({"step_time": 2.0, "data_wait": 0.25, "eta": 178.0})
    time.sleep(4)
    with pytest.raises(OSError), clock.pause():
        time.sleep(7)
        raise OSError
    assert clock.tick(12) == pytest.approx({"step_time": 3.0, "data_wait": 0.5 / 6, "eta": 264.0})


def test_the_clock_averages_over_its_window():
    time = FakeTime()
    clock = Clock(total_steps=10, window=3, now=time)
    times = []
    for step, seconds in enumerate([9, 1, 1, 1, 4], 1):
        with clock.data():
            time.sleep(seconds)
        times.append(clock.tick(step)["step_time"])
    assert times == pytest.approx([9, 5, 11 / 3, 1, 2]) and clock.tick(6)["data_wait"] == 1


def test_steps_that_take_no_time():
    clock = Clock(total_steps=10, now=FakeTime())
    assert clock.tick(1) == {"step_time": 0, "data_wait": 0, "eta": 0}


def test_memory(monkeypatch):
    before = memory()
    # more than malloc can serve from memory that earlier tests have freed
    array = np.ones(200 * 2**20, np.uint8)
    assert array[-1] and 150 < memory()["host"] - before["host"] < 250
    assert "device_peak" not in before
    devices = [
        types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak * 2**20})
        for peak in (3, 5)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory()["device_peak"] == 5


def test_memory_without_proc(monkeypatch):
    def read_text(self):
        raise FileNotFoundError

    monkeypatch.setattr(metrics_log.Path, "read_text", read_text)
    assert 10 < memory()["host"] < 1e6


def test_every_line_is_json(tmp_path):
    path = write_log(tmp_path, [1, 2])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 2]


def test_the_profiler_skips_the_first_steps(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", events.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    trace = Trace(tmp_path, 2, resumed_at=10)
    for step in range(11, 30):
        events.append(step)
        trace(step)
    assert events[events.index(str(tmp_path)) - 1] == 16
    assert events[events.index("stop") - 1] == 18 and events.count("stop") == 1
    early = Trace(tmp_path, 5, resumed_at=0)
    early(6)
    early.close()
    early.close()
    assert events.count("stop") == 2
    Trace(tmp_path, 0, 0)(6)
    assert events.count(str(tmp_path)) == 2
