"""launch/host.sh: restarts, SIGTERM, and several hosts of which one fails."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.metrics_log import read_metrics
from tests.support.fake_tools import LAUNCH, ROOT, TRAIN


def start_host(
    folder: Path, script: str, program: Path = LAUNCH / "host.sh", **variables
) -> subprocess.Popen:
    """Starts launch/host.sh with a bash script instead of Python."""
    python = folder / "python"
    python.write_text(f"#!/usr/bin/env bash\necho start >> {folder}/starts\n{script}\n")
    python.chmod(0o755)
    return subprocess.Popen(
        [program, *TRAIN],
        env=os.environ | {"PYTHON": str(python), "PAUSE": "0", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "restarts", "code", "starts"),
    [
        ("exit 0", 5, 0, 1),
        ("exit 2", 5, 2, 1),
        ("exit 1", 3, 1, 4),
        ("[ $(wc -l < $(dirname $0)/starts) = 3 ]", 5, 0, 3),
    ],
)
def test_failed_training_is_restarted(tmp_path, script, restarts, code, starts):
    process = start_host(tmp_path, script, RESTARTS=str(restarts))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == code, output
    assert len((tmp_path / "starts").read_text().split()) == starts, output
    assert output.count("host.sh: training ended with code") == starts - 1


def test_sigterm_lets_training_save_and_exits_with_143(tmp_path):
    script = "trap 'sleep 0.5; echo saved; exit 0' TERM\necho up\nwhile :; do sleep 0.05; done"
    process = start_host(tmp_path, script)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=300)[0] == "saved\n" and process.returncode == 143
    assert (tmp_path / "starts").read_text() == "start\n"


def test_sigterm_while_training_starts_stops_it(tmp_path):
    text, slow_host = (LAUNCH / "host.sh").read_text(), tmp_path / "host.sh"
    slow_host.write_text(text.replace("  child=$!\n", "  sleep 0.5\n  child=$!\n", 1))
    assert slow_host.read_text() != text
    slow_host.chmod(0o755)
    script = "trap 'echo saved; exit 0' TERM\necho up\nwhile :; do sleep 0.05; done"
    process = start_host(tmp_path, script, slow_host)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 143


def start_training_host(
    recipe: Path, port: int, number: int, output_file: Path
) -> subprocess.Popen:
    """Starts one of two hosts of a training run, in a process group of its own."""
    distributed = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": number}
    flags = [
        word
        for name, value in distributed.items()
        for word in (f"--distributed.{name}", str(value))
    ]
    environment = {
        "PYTHON": sys.executable,
        "PAUSE": "1",
        "RESTARTS": "5",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
    }
    with output_file.open("w") as out:
        return subprocess.Popen(
            [LAUNCH / "host.sh", "--config", recipe, *flags],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.mark.slow
def test_if_one_of_two_hosts_is_killed_both_restart_and_finish(tmp_path):
    """Two real training processes; both resume from the last checkpoint."""
    recipe, run = tmp_path / "recipe.py", tmp_path / "run"
    changes = "steps=200, checkpoint__every=20, checkpoint__keep=3"
    recipe.write_text(
        f"from tests.test_train import cheap\n\nconfig = cheap({str(run)!r}, {changes})\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    files = [tmp_path / f"output.{i}" for i in range(2)]
    hosts = [start_training_host(recipe, port, i, file) for i, file in enumerate(files)]

    def output() -> str:
        return "\n".join(file.read_text()[-3000:] for file in files)

    def step() -> int:
        lines = read_metrics(run)
        return lines[-1]["step"] if lines else 0

    try:
        deadline = time.monotonic() + 900
        while step() < 50:
            assert time.monotonic() < deadline, output()
            assert all(host.poll() is None for host in hosts), output()
            time.sleep(0.1)
        children = Path(f"/proc/{hosts[1].pid}/task/{hosts[1].pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGKILL)
        for host in hosts:
            assert host.wait(900) == 0, output()
    finally:
        for host in hosts:
            if host.poll() is None:
                os.killpg(host.pid, signal.SIGKILL)
    first, second = (file.read_text() for file in files)
    assert "host.sh: training ended with code 137" in second
    assert "host.sh: training ended with code" in first
    (resumed,) = re.findall(r"from step (\d+)", first)
    assert int(resumed) >= 40
    assert [line["step"] for line in read_metrics(run, "train")] == list(range(1, 201))
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps()[-1] == 200
