"""Checkpoints in processes of their own: kills, a full disk, several devices and processes."""

import random
import re
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.training.checkpoints import Checkpoints
from tests.support.checkpoint_state import make_state
from tests.support.devices import device_env

START = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ivid2vid_jax.training.checkpoints import Checkpoints, checksums, describe
run = Path(sys.argv[1])
"""

KILLED = (
    START
    + """
def value(step):
    return {"x": jax.random.normal(jax.random.key(step), (1_000_000,)), "step": jnp.int32(step)}
def abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
target = jax.tree.map(abstract, value(0))
with Checkpoints(run) as checkpoints:
    step = max(checkpoints.steps(), default=0)
    if step:
        state, data, meta = checkpoints.restore(step, target)
        assert int(state["step"]) == data["step"] == meta["step"] == step
        assert (state["x"] == value(step)["x"]).all()
    print("resumed", step, flush=True)
    while True:
        step += 1
        checkpoints.save(step, value(step), {"step": step}, {"step": step})
        print("saving", step, flush=True)
"""
)


def start_script(script, *args, devices=1):
    argv = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=device_env(devices)
    )


@pytest.mark.slow
def test_kills_during_saves_leave_the_last_complete_checkpoint(tmp_path):
    rng, incomplete, last = random.Random(0), 0, 0
    for _ in range(5):
        process = start_script(KILLED, tmp_path)
        first_line = process.stdout.readline()
        assert first_line, process.stderr.read()
        assert int(first_line.split()[1]) >= last, "a complete checkpoint was skipped"
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        incomplete += any("tmp" in name for name in names)
        last = max([int(name) for name in names if name.isdecimal()], default=0)
    assert incomplete and last, "no kill came during a save: this test proved nothing"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps()[-1] == last and checkpoints.read_meta(last) == {"step": last}
        checkpoints.save(last + 1, make_state(), {}, {})
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if "tmp" in path.name]


SHARDED = (
    START
    + """
count, spec, old, new = int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
mesh = jax.make_mesh((2, count // 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
def put(x, *axes):
    return jax.device_put(x, NamedSharding(mesh, P(*axes)))
def abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
rng = np.random.default_rng(0)
kernel = rng.normal(size=(64, 3, 32)).astype(np.float32)
bias = rng.normal(size=5).astype(np.float32)
axes = {
    "rows": ("fsdp",),
    "columns": (None, None, ("data", "fsdp")),
    "both": ("data", None, "fsdp"),
}[spec]
expected = {
    "kernel": put(kernel, *axes),
    "bias": put(bias),
    "half": put(kernel.astype(jnp.bfloat16), *axes),
}
with Checkpoints(run) as checkpoints:
    state = expected
    if old:
        state, _, _ = checkpoints.restore(old, jax.tree.map(abstract, expected))
    for name, x in state.items():
        assert x.sharding == expected[name].sharding, name
        assert np.asarray(x).tobytes() == np.asarray(expected[name]).tobytes(), name
    print(sorted((path, leaf.checksum) for path, leaf in describe(state).items()))
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0.5 - 1, tree), donate_argnums=0)
    # compiled before the save, so that it overwrites the buffers right after it
    jax.block_until_ready(advance(jax.tree.map(jnp.copy, state)))
    checkpoints.save(new, state, {}, {})
    for _ in range(5):
        state = advance(state)
"""
)


def test_a_sharded_state_moves_from_8_to_2_to_8_devices(tmp_path):
    checksums = []
    for count, spec, old, new in [(8, "rows", 0, 1), (2, "columns", 1, 2), (8, "both", 2, 3)]:
        process = start_script(SHARDED, tmp_path, count, spec, old, new, devices=count)
        out, err = process.communicate()
        assert process.returncode == 0, err
        checksums.append(out)
    assert checksums[0] == checksums[1] == checksums[2] and "kernel" in checksums[0]


FULL_DISK = (
    START
    + """
import resource
state = {"x": jax.random.normal(jax.random.key(0), (1_000_000,))}
with Checkpoints(run) as checkpoints:
    checkpoints.save(1, state, {}, {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    checkpoints.save(2, state, {}, {})
    print(checkpoints.steps(), flush=True)
"""
)


def test_a_failed_save_is_an_error_and_leaves_the_previous_checkpoint(tmp_path):
    process = start_script(FULL_DISK, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 1 and out == "[1]\n", err
    assert re.search(r"UserError: .*checkpoints: .*the last complete one is of step 1", err), err


PROCESSES = (
    START.replace("run = ", "import signal, os, time\nrun = ")
    + """
process, port = int(sys.argv[2]), sys.argv[3]
address = f"127.0.0.1:{port}"
jax.distributed.initialize(address, num_processes=2, process_id=process,
    coordinator_bind_address=address, cluster_detection_method="deactivate",
    initialization_timeout=60, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=30)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, P("data"))
x = jax.jit(lambda: jnp.arange(4096.0), out_shardings=sharding)()
advance = jax.jit(lambda x: x + 1, donate_argnums=0)
with Checkpoints(run) as checkpoints:
    for step in range(1, 200):
        x = advance(x)
        if step == 3 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if checkpoints.preempted(step):
            checkpoints.save(step, {"x": x}, {"step": step}, {})
            break
        time.sleep(0.05)
    print("saved", step, flush=True)
    target = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
    restored = checkpoints.restore(step, target)[0]["x"]
    for a, b in zip(restored.addressable_shards, x.addressable_shards):
        assert (np.asarray(a.data) == np.asarray(b.data)).all()
    assert checkpoints.discard_after(0) is None and checkpoints.steps() == []
    checkpoints.save(step, {"x": x}, {"step": step}, {})
"""
)


def test_two_processes_stop_at_the_same_step_when_one_gets_sigterm(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [start_script(PROCESSES, tmp_path, index, port, devices=2) for index in range(2)]
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1] + outputs[1][1]
    step, other = (int(re.search(r"^saved (\d+)$", out, re.M)[1]) for out, _ in outputs)
    assert step == other and 3 <= step < 199
    target = {"x": jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=jnp.zeros(1).sharding)}
    with Checkpoints(tmp_path) as checkpoints:
        state, data, _ = checkpoints.restore(step, target)
    np.testing.assert_array_equal(state["x"], np.arange(4096.0) + step)
    assert data == {"step": step}
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {str(step), f"{step}.discarded"}
