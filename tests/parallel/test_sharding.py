"""Any mesh and any number of processes give the run of one device; how the processes find each other; who holds what."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.parallel import processes, sharding
from ivid2vid_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from ivid2vid_jax.parallel.processes import DistributedConfig
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support.devices import environment

ROOT = Path(__file__).parents[2]
HOLDS = {
    "float32": {"loss": 1e-5, "gradients": 1e-4, "params": 1e-5},
    "float64": dict.fromkeys(("loss", "metrics", "gradients", "params", "ema"), 1e-9),
}


def mesh_of(data=1, fsdp=1, frames=1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, frames), AXES)


# ---- one process, many devices


def on_meshes(folder, dtype, *meshes) -> list[dict]:
    """What `sharded_run` tells of a step on each mesh; nothing in it is computed in another type."""
    words = [sys.executable, "-m", "tests.support.sharded_run", str(folder), dtype, *meshes]
    wide = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
    done = subprocess.run(
        words, cwd=ROOT, env=environment(8, **wide), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    types, *told = map(json.loads, done.stdout.splitlines())
    assert types == [dtype]
    return told


def check(told: dict, dtype: str) -> None:
    """The mesh's result is the first one's, and the mesh is really used: leaves are split, and clips, and frames."""
    data, fsdp, frames = map(int, told["mesh"].partition("/")[0].split(","))
    assert told["clip"] == [8 // (data * fsdp), 4 // frames, 16, 16, 3] and told["serial"] == [
        8 // (data * fsdp)
    ]
    for leaves in (told["split"], told["frozen"]):
        assert set(leaves) <= {"1/1", f"1/{fsdp}"} and leaves[f"1/{fsdp}"] > 0.9 * sum(
            leaves.values()
        ), told
    for what, most in HOLDS[dtype].items():
        error, name = told["errors"][what]
        assert error <= most, f"{told['mesh']}: {what} {name} is off by {error}"


@pytest.mark.slow
def test_a_mesh_of_three_axes_gives_the_step_of_one_device_in_float64(tmp_path):
    one, *others = on_meshes(tmp_path, "float64", "1,1,1", "2,2,2")
    assert one["clip"] == [8, 4, 16, 16, 3] and set(one["split"]) == {"1/1"} and len(others) == 1
    check(others[0], "float64")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_mesh_gives_the_step_of_one_device(tmp_path, dtype):
    meshes = ["8,1,1", "1,8,1", "4,1,2", "2,2,2", "1,4,2", "2,1,4", "2,2,2/2"]
    _, *others = on_meshes(tmp_path, dtype, "1,1,1", *meshes)
    assert [told["mesh"] for told in others] == meshes
    for told in others:
        check(told, dtype)


# ---- who holds what


def test_the_mesh_takes_what_is_left_and_refuses_what_does_not_fit():
    def devices(*processes):
        return [SimpleNamespace(process_index=process) for process in processes]

    def refused(message, config, found=devices(*[0] * 8)):
        with pytest.raises(UserError, match=message):
            make_mesh(config, found)

    refused(r"'data': -1, 'fsdp': -1.*at most one may be -1", MeshConfig(fsdp=-1))
    refused(r"'fsdp': 0.*sizes are positive", MeshConfig(fsdp=0))
    refused(r"'frames': -2.*sizes are positive", MeshConfig(data=1, frames=-2))
    refused(
        r"2 x 2 x 1 is not the 8 devices there are; let one of data, fsdp, frames be -1",
        MeshConfig(2, 2, 1),
    )
    refused(r"2 x 3 x 1 is not the 8 devices", MeshConfig(fsdp=3))
    refused(
        r"frames 4 does not divide the 2 devices of one process",
        MeshConfig(frames=4),
        devices(0, 0, 1, 1, 2, 2, 3, 3),
    )
    assert dict(make_mesh(MeshConfig()).shape) == {
        "data": jax.device_count(),
        "fsdp": 1,
        "frames": 1,
    }
    assert dict(make_mesh(MeshConfig(data=1, fsdp=-1), jax.devices()[:1]).shape) == dict.fromkeys(
        AXES, 1
    )


@pytest.mark.parametrize(
    "shape, size, spec",
    [
        ((128, 256), 4, P(None, "fsdp")),
        ((256, 128), 4, P("fsdp", None)),
        ((3, 3, 64, 64), 8, P(None, None, "fsdp", None)),  # of equal axes the first
        ((3, 1, 1, 100, 90), 4, P(None, None, None, "fsdp", None)),
        ((999, 128), 8, P(None, "fsdp")),  # the largest cannot be divided
        ((999, 129), 8, P()),
        ((128, 128), 1, P()),
        ((2**14 - 8,), 8, P()),  # small
        ((2**14,), 8, P("fsdp")),
        ((), 8, P()),
    ],
)
def test_the_largest_axis_that_can_be_is_split(shape, size, spec):
    assert sharding.fsdp_spec(shape, mesh_of(data=2, fsdp=size)) == spec


def test_rules_are_taken_in_order_and_large_leaves_that_stay_whole_are_told(caplog):
    tree = {
        "unet/kernel": jax.ShapeDtypeStruct((256, 256), "float32"),
        "odd/kernel": jax.ShapeDtypeStruct((201, 201), "float32"),
        "step": np.int32(0),
    }
    with caplog.at_level("INFO"):
        found = sharding.tree_shardings({"params": tree}, mesh_of(fsdp=2))["params"]
    assert {name: s.spec for name, s in found.items()} == {
        "unet/kernel": P("fsdp", None),
        "odd/kernel": P(),
        "step": P(),
    }
    assert [record.getMessage() for record in caplog.records] == [
        "params/odd/kernel [201, 201] is copied to every device: no axis is a multiple of 2"
    ]
    ruled = sharding.tree_shardings(tree, mesh_of(fsdp=2), (("unet", "replicate"), (r".*", "fsdp")))
    assert ruled["unet/kernel"].spec == P()


def test_clips_and_frames_of_a_batch_are_split_and_what_does_not_fit_is_refused():
    mesh, clips = mesh_of(2, 2, 4), ("data", "fsdp")
    assert sharding.batch_sharding("source", (8, 8, 16, 16, 3), mesh).spec == P(clips, "frames")
    assert sharding.batch_sharding("source", (8, 1, 16, 16, 3), mesh).spec == P(
        clips
    )  # still images
    assert (
        sharding.batch_sharding("tokens", (8, 77), mesh).spec
        == sharding.batch_sharding("serial", (8,), mesh).spec
        == P(clips)
    )
    with pytest.raises(
        UserError, match=r"--loader.batch 6 is not a multiple of data x fsdp = 4 of the mesh"
    ):
        sharding.batch_sharding("serial", (6,), mesh)
    with pytest.raises(UserError, match=r"source: 6 frames are not a multiple of --mesh.frames 4"):
        sharding.batch_sharding("source", (8, 6, 16, 16, 3), mesh)


def test_a_process_puts_its_share_of_the_batch(monkeypatch):
    """Of two processes each gives half of the rows; the whole shape is both's."""
    shares = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        jax,
        "make_array_from_process_local_data",
        lambda s, part, shape: shares.append((s.spec, part.shape, shape)),
    )
    sharding.put_batch(
        {"clip": np.zeros((3, 4, 8, 8, 3), np.uint8), "serial": np.zeros(3, np.uint32)},
        mesh_of(data=2, frames=2),
    )
    assert shares == [
        (P(("data", "fsdp"), "frames"), (3, 4, 8, 8, 3), (6, 4, 8, 8, 3)),
        (P(("data", "fsdp")), (3,), (6,)),
    ]


# ---- how processes find each other


@pytest.mark.parametrize(
    "variables, found",
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7"}, False),  # salloc without srun
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"},
            False,
        ),  # a step of one task in a job of four
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": ""}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1v-0,t1v-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "1"}, False),
    ],
)
def test_a_cluster_is_known_by_its_environment(variables, found):
    assert processes.in_cluster(variables) is found


@pytest.fixture
def meeting(monkeypatch):
    """Calls of jax.distributed.initialize, which is not run; an environment without a cluster or a TPU."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **options: calls.append((args, options))
    )
    monkeypatch.setattr(processes, "has_tpu", lambda: False)
    for name in (
        "SLURM_NTASKS",
        "SLURM_STEP_NUM_TASKS",
        "TPU_WORKER_HOSTNAMES",
        "MEGASCALE_NUM_SLICES",
        "JAX_COORDINATOR_PORT",
    ):
        monkeypatch.setenv(name, "")  # undone with the rest, and `initialise` may set it
        monkeypatch.delenv(name)
    return calls


def test_flags_name_the_coordinator_and_the_port_is_one_that_firewalls_pass(meeting):
    options = {"cluster_detection_method": "deactivate"}
    processes.initialize_distributed(DistributedConfig("10.0.0.2", 4, 3))
    processes.initialize_distributed(DistributedConfig("10.0.0.2:9000", 2, 0))
    assert meeting == [(("10.0.0.2:8476", 4, 3), options), (("10.0.0.2:9000", 2, 0), options)]


@pytest.mark.parametrize(
    "flags",
    [
        ("host", None, None),
        (None, 2, None),
        (None, None, 0),
        ("host", 2, None),
        ("host", None, 1),
        (None, 2, 1),
    ],
)
def test_incomplete_flags_are_refused(meeting, flags):
    with pytest.raises(
        UserError,
        match="coordinator, --distributed.processes and --distributed.process go together",
    ):
        processes.initialize_distributed(DistributedConfig(*flags))
    assert not meeting


@pytest.mark.parametrize("process", [2, -1])
def test_a_process_out_of_range_is_refused(meeting, process):
    with pytest.raises(UserError, match=f"--distributed.process {process} must be between 0 and 1"):
        processes.initialize_distributed(DistributedConfig("host", 2, process))
    assert not meeting


def test_a_single_process_is_left_alone_and_a_cluster_found(meeting, monkeypatch):
    processes.initialize_distributed(DistributedConfig())
    assert not meeting and "JAX_COORDINATOR_PORT" not in os.environ
    monkeypatch.setenv("SLURM_NTASKS", "2")
    processes.initialize_distributed(DistributedConfig(off=True))
    assert not meeting
    processes.initialize_distributed(DistributedConfig())
    assert meeting == [((), {})] and os.environ["JAX_COORDINATOR_PORT"] == "8476"
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    processes.initialize_distributed(DistributedConfig())
    assert len(meeting) == 1


def test_a_cluster_that_cannot_be_joined_is_an_error_and_a_lone_tpu_is_not(meeting, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no coordinator")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    monkeypatch.setattr(processes, "has_tpu", lambda: True)
    processes.initialize_distributed(DistributedConfig())
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(
        UserError, match=r"could not find each other \(no coordinator\); name them by --distributed"
    ):
        processes.initialize_distributed(DistributedConfig())


# ---- whole runs, by the command


class Run:
    """`python -m ivid2vid_jax.train` of the recipe in `folder`/recipe.py, by one or more processes of `devices` each."""

    def __init__(self, folder: Path, *words, processes: int = 1, devices: int = 8):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        base = [
            sys.executable,
            "-m",
            "ivid2vid_jax.train",
            "--config",
            str(folder / "recipe.py"),
            *map(str, words),
        ]
        self.files = [folder / f"said.{i}" for i in range(processes)]
        self.processes = []
        for i, file in enumerate(self.files):
            meet = [
                "--distributed.coordinator",
                f"127.0.0.1:{port}",
                "--distributed.processes",
                str(processes),
                "--distributed.process",
                str(i),
            ]
            with open(file, "w") as out:
                self.processes.append(
                    subprocess.Popen(
                        base + (meet if processes > 1 else []),
                        cwd=ROOT,
                        env=environment(devices),
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )

    def said(self) -> list[str]:
        return [file.read_text() for file in self.files]

    def end(self, seconds: float = 900) -> list[str]:
        """What each process said; fails where one does not end well in time, and leaves none behind."""
        try:
            for process in self.processes:
                process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail("\n".join(["does not end", *(text[-3000:] for text in self.said())]))
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.returncode for process in self.processes]
        assert codes == [0] * len(codes), "\n".join(
            [str(codes), *(text[-3000:] for text in self.said())]
        )
        return self.said()


def recipe(folder: Path, **changes) -> Path:
    """Writes recipe.py for a run in folder/run, whose kernels are split over fsdp in spite of their size; returns the run's folder."""
    folder.mkdir()
    changes = (
        dict(net__temporal=("conv",), mesh__fsdp=2, mesh__frames=2, checkpoint__keep=100) | changes
    )
    (folder / "recipe.py").write_text(
        "from ivid2vid_jax.training import sharding\nfrom tests.support.sharded_run import recipe\n\n"
        f"sharding.SMALL = 64\nconfig = recipe({str(folder / 'run')!r}, **{changes!r})\n"
    )
    return folder / "run"


def copied(run: Path, folder: Path, **changes) -> Path:
    """A copy of a run, to go on from in another way."""
    new = recipe(folder, **changes)
    shutil.copytree(run, new)
    return new


def curve(run: Path, kind: str = "train", name: str = "loss") -> dict[int, float]:
    return {record["step"]: record[name] for record in read_metrics(run, kind)}


def close(found: dict, wanted: dict, most: float) -> None:
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[step] for step in wanted], list(wanted.values()), rtol=most)


# Attention in chunks is shared out over the mesh by hand, as splash is on TPU: samples, which one process makes, must not be shared with those that wait.
WATCHED = dict(
    log__eval_every=3, log__sample_every=6, checkpoint__pipeline=True, optim__attention="chunked"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The uninterrupted run of 6 steps by one process of 8 devices, everything switched on."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    run = recipe(folder, **WATCHED)
    Run(folder).end()
    return run


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The same run by two processes of 4 devices."""
    folder = tmp_path_factory.mktemp("runs") / "together"
    run = recipe(folder, **WATCHED)
    Run(folder, processes=2, devices=4).end()
    return run


@pytest.mark.slow
def test_two_processes_train_as_one(alone, together):
    for name in ("loss", "grad_norm", "noise_loss", "frame_loss", "param_norm"):
        close(curve(together, name=name), curve(alone, name=name), 1e-5)
    assert list(curve(alone)) == [1, 2, 3, 4, 5, 6]
    close(curve(together, "validation"), curve(alone, "validation"), 1e-4)
    assert list(curve(alone, "validation")) == [3, 6]


@pytest.mark.slow
def test_two_processes_leave_behind_what_one_does(alone, together):
    def left(run):
        return sorted(
            str(path.relative_to(run))
            for path in run.rglob("*")
            if not set(path.relative_to(run).parts) & {"checkpoints", "tensorboard"}
        )

    assert (
        left(together) == left(alone)
        and "samples/6/0.gif" in left(alone)
        and "pipeline/unet/config.json" in left(alone)
    )
    with Checkpoints(together) as one, Checkpoints(alone) as other:
        assert one.steps() == other.steps() == [2, 4, 6]
    for found, wanted in zip(
        *(
            jax.tree.leaves(load_params(open_pipeline_folder(run / "pipeline")))
            for run in (together, alone)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.slow
def test_two_processes_start_from_a_model_as_one_does(alone, tmp_path):
    """Its weights are read by both, temporal attention is drawn, frozen weights are written as the model holds them."""
    started = dict(
        model=str(alone), net__temporal=("conv", "attention"), steps=2, checkpoint__pipeline=True
    )
    runs = {processes: recipe(tmp_path / str(processes), **started) for processes in (1, 2)}
    for count in runs:
        Run(tmp_path / str(count), processes=count, devices=8 // count).end()
    for name in ("loss", "param_norm"):
        close(curve(runs[2], name=name), curve(runs[1], name=name), 1e-5)
    kept, stored = (
        load_params(open_pipeline_folder(run / "pipeline"))["vae"] for run in (runs[2], alone)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, stored))


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(alone, together, tmp_path):
    run = copied(together, tmp_path / "one", mesh__fsdp=1)
    Run(tmp_path / "one", "--resume", 2).end()
    close(curve(run), curve(alone), 1e-4)


@pytest.mark.slow
def test_a_run_goes_from_8_devices_to_2_and_back(alone, tmp_path):
    two = copied(alone, tmp_path / "two", mesh__frames=1)
    Run(tmp_path / "two", "--resume", 2, devices=2).end()
    close(curve(two), curve(alone), 1e-4)
    eight = copied(two, tmp_path / "eight")
    Run(tmp_path / "eight", "--resume", 4).end()
    close(curve(eight), curve(alone), 1e-4)
    assert curve(eight)[4] == curve(two)[4] != curve(alone)[4], (
        "steps 3 and 4 are not those of 2 devices"
    )


@pytest.mark.slow
def test_a_sigterm_to_one_of_two_processes_stops_both_at_the_same_saved_step(tmp_path):
    run = recipe(tmp_path / "stopped", steps=100_000, checkpoint__every=100_000)
    both = Run(tmp_path / "stopped", processes=2, devices=4)
    until = time.monotonic() + 600
    while (
        len(curve(run)) < 3
        and time.monotonic() < until
        and all(process.poll() is None for process in both.processes)
    ):
        time.sleep(0.2)
    both.processes[1].send_signal(signal.SIGTERM)
    first, second = (re.search(r"told to stop: saved at step (\d+)", text) for text in both.end())
    assert first[1] == second[1] and int(first[1]) >= 3
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [int(first[1])]
