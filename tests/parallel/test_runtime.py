"""Settings of a process: compiler options and the precision of matrix products."""

import logging

import jax
import pytest

from ivid2vid_jax.parallel import runtime


@pytest.mark.parametrize(
    ("options", "accepted"),
    [({"xla_cpu_enable_fast_math": "False"}, True), ({"xla_cpu_no_such_option": "1"}, False)],
)
def test_options_that_the_compiler_refuses_are_logged(options, accepted, monkeypatch, caplog):
    monkeypatch.setitem(runtime.COMPILER_OPTIONS, "cpu", options)
    # Without the cache of the process's own options.
    used = runtime.compiler_options.__wrapped__(jax.local_devices()[0])
    assert used == (options if accepted else None)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warnings) != accepted
    assert accepted or "xla_cpu_no_such_option" in caplog.text
