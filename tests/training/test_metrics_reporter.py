"""Throughput and model FLOP/s utilisation in the lines of the log."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.training.metrics_reporter import MetricsReporter
from tests.support.tiny_run import tiny


@pytest.mark.parametrize(("kind", "mfu"), [("TPU v5 lite", 0.25), ("cpu", None)])
def test_model_flops_utilisation(kind, mfu):
    """4 chips of 197 TFLOP/s that do 394 TFLOP in 2 s reach a quarter of their peak."""
    mesh = SimpleNamespace(size=4, devices=np.array([SimpleNamespace(device_kind=kind)] * 4))
    timing = {"step_time": 2.0, "data_wait": 0.0, "eta": 0.0}
    clock = SimpleNamespace(tick=lambda step: dict(timing))
    written, lines = [], []
    log = SimpleNamespace(
        write=lambda step, values: written.append(values),
        line=lambda step, values: lines.append(values),
    )
    program = SimpleNamespace(flops=394e12)
    reporter = MetricsReporter(tiny("unused"), clock, log, program, None, mesh)
    reporter(1, {"loss": jnp.ones(())}, frames=8)
    reporter.flush()
    assert written[0]["model_flops_per_s"] == 197e12
    assert written[0]["clips_per_s"] == 2 and written[0]["frames_per_s_per_chip"] == 1
    assert written[0].get("mfu") == lines[0].get("mfu") == mfu
