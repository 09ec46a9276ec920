"""Any mesh and any number of processes train as one device does. Slow: minutes per test."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support.devices import device_env

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Largest relative error against one device.
TOLERANCES = {
    "float32": {"loss": 1e-5, "gradients": 1e-4, "params": 1e-5},
    "float64": dict.fromkeys(("loss", "metrics", "gradients", "params", "ema"), 1e-9),
}


# ---- One step, one process, eight devices


def step_on_meshes(folder, dtype, *meshes) -> list[dict]:
    """The reports of tests/support/sharded_run.py, one per mesh.

    Also checks that the step computes in no other floating-point dtype.
    """
    command = [sys.executable, "-m", "tests.support.sharded_run", str(folder), dtype, *meshes]
    x64 = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
    process = subprocess.run(
        command, cwd=ROOT, env=device_env(8, **x64), capture_output=True, text=True, timeout=1200
    )
    assert process.returncode == 0, process.stderr[-3000:]
    dtypes, *reports = map(json.loads, process.stdout.splitlines())
    assert dtypes == [dtype]
    return reports


def check_report(report: dict, dtype: str) -> None:
    """The result equals that of one device, and leaves, clips and frames are really split."""
    data, fsdp, frames = map(int, report["mesh"].partition("/")[0].split(","))
    assert report["clip"] == [8 // (data * fsdp), 4 // frames, 16, 16, 3]
    assert report["serial"] == [8 // (data * fsdp)]
    for shares in (report["split"], report["frozen"]):
        assert set(shares) <= {"1/1", f"1/{fsdp}"}, report
        assert shares[f"1/{fsdp}"] > 0.9 * sum(shares.values()), report
    for name, tolerance in TOLERANCES[dtype].items():
        error, leaf = report["errors"][name]
        assert error <= tolerance, f"{report['mesh']}: error of {name} {leaf} is {error}"


def test_a_mesh_of_three_axes_gives_the_step_of_one_device_in_float64(tmp_path):
    single, *others = step_on_meshes(tmp_path, "float64", "1,1,1", "2,2,2")
    assert single["clip"] == [8, 4, 16, 16, 3] and set(single["split"]) == {"1/1"}
    assert len(others) == 1
    check_report(others[0], "float64")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_mesh_gives_the_step_of_one_device(tmp_path, dtype):
    meshes = ["8,1,1", "1,8,1", "4,1,2", "2,2,2", "1,4,2", "2,1,4", "2,2,2/2"]
    _, *reports = step_on_meshes(tmp_path, dtype, "1,1,1", *meshes)
    assert [report["mesh"] for report in reports] == meshes
    for report in reports:
        check_report(report, dtype)


# ---- Whole runs of the training command


class Run:
    """`python -m ivid2vid_jax.train` of folder/recipe.py, in one or more processes."""

    def __init__(self, folder: Path, *arguments, processes: int = 1, devices: int = 8):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        command = [sys.executable, "-m", "ivid2vid_jax.train"]
        command += ["--config", str(folder / "recipe.py"), *map(str, arguments)]
        self.logs = [folder / f"log.{i}" for i in range(processes)]
        self.processes = []
        for i, log in enumerate(self.logs):
            flags = {"coordinator": f"127.0.0.1:{port}", "processes": processes, "process": i}
            words = [w for name, value in flags.items() for w in (f"--distributed.{name}", value)]
            with log.open("w") as output:
                process = subprocess.Popen(
                    command + (list(map(str, words)) if processes > 1 else []),
                    cwd=ROOT,
                    env=device_env(devices),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def log_tails(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)

    def wait(self, seconds: float = 900) -> list[str]:
        """The logs of all processes. Fails on an error or a timeout; kills what still runs."""
        try:
            for process in self.processes:
                process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s\n{self.log_tails()}")
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.returncode for process in self.processes]
        assert codes == [0] * len(codes), f"{codes}\n{self.log_tails()}"
        return [log.read_text() for log in self.logs]


def write_recipe(folder: Path, slices: int = 1, **changes) -> Path:
    """Writes folder/recipe.py for a run in folder/run, and returns the run's folder.

    The limit on the size of split leaves is lowered, so that kernels are split over fsdp. With
    `slices`, the processes are those of several slices or nodes.
    """
    folder.mkdir()
    defaults = dict(net__temporal=("conv",), mesh__fsdp=2, mesh__frames=2, checkpoint__keep=100)
    run, changes = folder / "run", defaults | changes
    (folder / "recipe.py").write_text(
        "import jax\n\n"
        "from ivid2vid_jax.parallel import mesh, sharding\n"
        "from tests.support.sharded_run import recipe\n\n"
        "sharding.MIN_SHARDED_SIZE = 64\n"
        "mesh.slice_index = lambda device: (\n"
        f"    device.process_index * {slices} // jax.process_count()\n"
        ")\n"
        f"config = recipe({str(run)!r}, **{changes!r})\n"
    )
    return run


def copy_run(run: Path, folder: Path, **changes) -> Path:
    """Copies a run, to continue it under a changed recipe."""
    copy = write_recipe(folder, **changes)
    shutil.copytree(run, copy)
    return copy


def read_curve(run: Path, kind: str = "train", name: str = "loss") -> dict[int, float]:
    return {record["step"]: record[name] for record in read_metrics(run, kind)}


def assert_close(actual: dict, expected: dict, rtol: float) -> None:
    assert actual.keys() == expected.keys()
    values = [actual[step] for step in expected]
    np.testing.assert_allclose(values, list(expected.values()), rtol=rtol)


# Chunked attention is split over the mesh by shard_map, as splash attention is on TPU. Samples are
# made by one process, so they must not be split over those of the others.
EVERYTHING_ON = dict(
    log__eval_every=3, log__sample_every=6, checkpoint__pipeline=True, optim__attention="chunked"
)


@pytest.fixture(scope="module")
def single_run(tmp_path_factory):
    """The uninterrupted run of 6 steps by one process with 8 devices, everything enabled."""
    folder = tmp_path_factory.mktemp("runs") / "single"
    run = write_recipe(folder, **EVERYTHING_ON)
    Run(folder).wait()
    return run


@pytest.fixture(scope="module")
def double_run(tmp_path_factory):
    """The same run by two processes with 4 devices each."""
    folder = tmp_path_factory.mktemp("runs") / "double"
    run = write_recipe(folder, **EVERYTHING_ON)
    Run(folder, processes=2, devices=4).wait()
    return run


def test_two_processes_train_as_one(single_run, double_run):
    for name in ("loss", "grad_norm", "noise_loss", "frame_loss", "param_norm"):
        assert_close(read_curve(double_run, name=name), read_curve(single_run, name=name), 1e-5)
    assert list(read_curve(single_run)) == [1, 2, 3, 4, 5, 6]
    expected = read_curve(single_run, "validation")
    assert_close(read_curve(double_run, "validation"), expected, 1e-4)
    assert list(expected) == [3, 6]


def test_two_processes_write_the_files_of_one(single_run, double_run):
    def files(run):
        paths = [path.relative_to(run) for path in run.rglob("*")]
        ignored = {"checkpoints", "tensorboard"}
        return sorted(str(path) for path in paths if not set(path.parts) & ignored)

    expected = files(single_run)
    assert files(double_run) == expected
    assert "samples/6/0.gif" in expected and "pipeline/unet/config.json" in expected
    with Checkpoints(double_run) as double, Checkpoints(single_run) as single:
        assert double.steps() == single.steps() == [2, 4, 6]
    double_params, single_params = (
        jax.tree.leaves(load_params(open_pipeline_folder(run / "pipeline")))
        for run in (double_run, single_run)
    )
    for actual, expected in zip(double_params, single_params, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_two_processes_start_from_a_model_as_one_does(single_run, tmp_path):
    """Both read its weights, initialise temporal attention and export frozen weights unchanged."""
    changes = dict(
        model=str(single_run),
        net__temporal=("conv", "attention"),
        steps=2,
        checkpoint__pipeline=True,
    )
    runs = {count: write_recipe(tmp_path / str(count), **changes) for count in (1, 2)}
    for count in runs:
        Run(tmp_path / str(count), processes=count, devices=8 // count).wait()
    for name in ("loss", "param_norm"):
        assert_close(read_curve(runs[2], name=name), read_curve(runs[1], name=name), 1e-5)
    actual, expected = (
        load_params(open_pipeline_folder(run / "pipeline"))["vae"] for run in (runs[2], single_run)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, actual, expected))


def test_one_process_resumes_a_run_of_two(single_run, double_run, tmp_path):
    run = copy_run(double_run, tmp_path / "one", mesh__fsdp=1)
    Run(tmp_path / "one", "--resume", 2).wait()
    assert_close(read_curve(run), read_curve(single_run), 1e-4)


@pytest.fixture(scope="module", params=[2, 4])
def sliced_run(request, tmp_path_factory):
    """(processes, folder): the same run in two slices of one or two processes.

    In four processes, `fsdp` crosses those of a slice.
    """
    folder = tmp_path_factory.mktemp("runs") / "sliced"
    run = write_recipe(folder, slices=2, **EVERYTHING_ON)
    logs = Run(folder, processes=request.param, devices=8 // request.param).wait()
    assert "data 2 x fsdp 2 x frames 2" in logs[0]
    return request.param, run


def test_two_slices_train_as_one_process(single_run, sliced_run):
    _, run = sliced_run
    for name in ("loss", "grad_norm", "param_norm"):
        assert_close(read_curve(run, name=name), read_curve(single_run, name=name), 1e-5)
    expected = read_curve(single_run, "validation")
    assert_close(read_curve(run, "validation"), expected, 1e-4)
    assert (run / "pipeline" / "training.json").is_file()


def test_two_slices_resume_with_another_number_of_processes(single_run, sliced_run, tmp_path):
    count, source = sliced_run
    other = {2: 4, 4: 2}[count]
    run = copy_run(source, tmp_path / "other", slices=2, mesh__fsdp=4, mesh__frames=1)
    Run(tmp_path / "other", "--resume", 2, processes=other, devices=8 // other).wait()
    assert_close(read_curve(run), read_curve(single_run), 1e-4)


def test_a_mesh_over_the_border_of_a_slice_is_refused(tmp_path):
    """Every process says why in one line, before it makes anything."""
    run = write_recipe(tmp_path / "refused", slices=2, mesh__fsdp=8, mesh__frames=1)
    double = Run(tmp_path / "refused", processes=2, devices=4)
    assert [process.wait(300) for process in double.processes] == [2, 2]
    for log in double.logs:
        assert "fsdp 8 --mesh.frames 1: on 8 devices, 4 per slice or node" in log.read_text()
    assert not run.exists()


def test_a_run_moves_from_8_devices_to_2_and_back(single_run, tmp_path):
    on_two = copy_run(single_run, tmp_path / "two", mesh__frames=1)
    Run(tmp_path / "two", "--resume", 2, devices=2).wait()
    assert_close(read_curve(on_two), read_curve(single_run), 1e-4)
    on_eight = copy_run(on_two, tmp_path / "eight")
    Run(tmp_path / "eight", "--resume", 4).wait()
    assert_close(read_curve(on_eight), read_curve(single_run), 1e-4)
    assert read_curve(on_eight)[4] == read_curve(on_two)[4] != read_curve(single_run)[4], (
        "steps 3 and 4 must be those of 2 devices"
    )


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_saved_step(tmp_path):
    run = write_recipe(tmp_path / "stopped", steps=100_000, checkpoint__every=100_000)
    double = Run(tmp_path / "stopped", processes=2, devices=4)
    deadline = time.monotonic() + 600
    while len(read_curve(run)) < 3 and time.monotonic() < deadline:
        if any(process.poll() is not None for process in double.processes):
            break
        time.sleep(0.2)
    double.processes[1].send_signal(signal.SIGTERM)
    first, second = (re.search(r"stop.* saved at step (\d+)", log) for log in double.wait())
    assert first[1] == second[1] and int(first[1]) >= 3
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [int(first[1])]
