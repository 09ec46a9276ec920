"""Checkpoints: what was saved comes back bit for bit, on any devices; what is damaged is refused by name, and nothing is passed over in silence."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ivid2vid_jax.training import checkpoints
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.utils.errors import UserError
from tests.support.devices import environment

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # orbax drops futures when a file cannot be read
DATA, META = {"global_next_index": 192}, {"config": {"lr": 1e-4, "sizes": [1, 2]}, "origin": None}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict
    key: jax.Array


def state(step=0, rows=64, **more):
    """Random, so that it does not compress; names as the U-Net has them."""
    rng = np.random.default_rng(step)
    params = {
        "down_blocks.0/conv.1/kernel": rng.normal(size=(rows, 32)).astype(np.float32),
        "conv_in/bias": rng.normal(size=7).astype(np.float32),
    }
    params = jax.tree.map(jnp.asarray, params | more)
    opt_state = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-4))
    ).init(params)
    return State(jnp.int32(step), params, opt_state, {}, jax.random.key_data(jax.random.key(step)))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def same(tree, wanted):
    assert jax.tree.structure(tree) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(run, *steps):
    """A run with checkpoints of `steps`."""
    with Checkpoints(run) as all_:
        for step in steps:
            all_.save(step, state(step), DATA | {"step": step}, META)
    return run


def refused(run, step, target=None):
    """The message with which a restore is refused."""
    with Checkpoints(run) as all_, pytest.raises(UserError) as error:
        all_.restore(step, abstract(state() if target is None else target))
    return str(error.value)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    odd = {
        "nan": jnp.array([np.nan, -0.0, np.inf], jnp.bfloat16),
        "half": jnp.ones((2, 3), jnp.float16),
        "flags": jnp.array([True, False]),
    }
    before = state(5, **odd).replace(
        ema={"bytes": jnp.arange(5, dtype=jnp.uint8), "small": jnp.array([-3, 4], jnp.int8)}
    )
    with Checkpoints(tmp_path) as all_:
        all_.save(5, before, DATA, META)
    with Checkpoints(tmp_path) as all_:
        assert all_.steps() == [5] and all_.read_meta(5) == META
        after, data, meta = all_.restore(5, abstract(before))
    same(after, before)
    assert (data, meta) == (DATA, META)
    assert sorted(
        path.name for path in (tmp_path / "checkpoints" / "5").iterdir() if path.is_dir()
    ) == ["data", "meta", "state"]


def test_float64_comes_back(tmp_path):
    with jax.enable_x64(True):
        before = {
            "wide": jnp.array([1 / 3, 1e300]),
            "count": jnp.array(2**40),
            "one": jnp.float32(3),
        }
        with Checkpoints(tmp_path) as all_:
            all_.save(1, before, {}, {})
            all_.wait()
            same(all_.restore(1, abstract(before))[0], before)


def test_arrays_may_be_donated_at_once(tmp_path):
    """The save of step 1 must not see what the next steps write into its buffers."""
    advance = jax.jit(lambda x: x * 0.5 - 1, donate_argnums=0)
    x = advance(jnp.zeros(2_000_000))
    buffer = x.unsafe_buffer_pointer()
    x = advance(x)
    assert x.unsafe_buffer_pointer() == buffer, (
        "donation does nothing here: this test would prove nothing"
    )
    fresh = jax.random.normal(jax.random.key(0), (2_000_000,))
    with Checkpoints(tmp_path) as all_:
        all_.save(1, {"x": fresh}, {}, {})
        assert all((all_.folder / str(step)).is_dir() for step in all_.steps()), (
            "a save under way counts as complete"
        )
        for _ in range(5):
            fresh = advance(fresh)
        all_.wait()
        after = all_.restore(1, abstract({"x": fresh}))[0]["x"]
    np.testing.assert_array_equal(after, jax.random.normal(jax.random.key(0), (2_000_000,)))


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16", "float16", "int8", "uint8", "int32", "uint32", "float64", "int64"],
)
def test_one_flipped_bit_always_changes_the_checksum(dtype):
    with jax.enable_x64(True):
        raw = np.random.default_rng(0).integers(
            0, 256, 12 * jnp.dtype(dtype).itemsize, dtype=np.uint8
        )
        flips = np.stack(
            [raw, *(raw ^ np.packbits(bit) for bit in np.eye(8 * raw.size, dtype=np.uint8))]
        )
        arrays = flips.view(jnp.dtype(dtype)).reshape(len(flips), 3, 4)
        sums = jax.jit(jax.vmap(checkpoints.checksum))(arrays)
        assert sums.dtype == jnp.uint32 and not (sums[1:] == sums[0]).any()


def test_the_checksum_is_the_formula_and_knows_order():
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    words = x.view(np.uint32).ravel().astype(object)
    assert (
        int(checkpoints.checksum(x))
        == sum(int(w) * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    )
    assert int(checkpoints.checksum(x[::-1])) != int(checkpoints.checksum(x))
    assert int(checkpoints.checksum(jnp.array([True, False]))) != int(
        checkpoints.checksum(jnp.array([False, True]))
    )


DAMAGE = {
    "state: truncated": ("state", lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])),
    "state: a bit": ("state", lambda f: flip(f, f.stat().st_size // 2)),
    "state: missing": ("state", lambda f: f.unlink()),
    "meta: truncated": ("meta", lambda f: f.write_bytes(f.read_bytes()[:40])),
    "meta: a digit": ("meta", lambda f: f.write_text(f.read_text().replace("0.0001", "0.0002"))),
    "meta: other json": ("meta", lambda f: f.write_text("[1]")),
    "data: a digit": ("data", lambda f: f.write_text(f.read_text().replace("192", "193"))),
    "data: missing": ("data", lambda f: shutil.rmtree(f.parent)),
    "state: all missing": (
        "state",
        lambda f: shutil.rmtree(f.parents[1] if f.parent.name == "d" else f.parent),
    ),
}


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def biggest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(tmp_path, kind):
    item, harm = DAMAGE[kind]
    folder = saved(tmp_path, 10, 20) / "checkpoints" / "20"
    harm(biggest(folder / item) if item == "state" else folder / item / "metadata")
    message = refused(tmp_path, 20)
    assert (
        message.startswith(f"{folder}: ")
        and message.endswith("start again with --resume 10")
        and "\n" not in message
    )
    assert ("damaged" in message) and len(message) < 600
    with Checkpoints(tmp_path) as all_:
        assert all_.steps() == [10, 20]
        same(all_.restore(10, abstract(state()))[0], state(10))


def test_a_flipped_bit_in_the_state_names_the_leaf(tmp_path):
    DAMAGE["state: a bit"][1](biggest(saved(tmp_path, 10) / "checkpoints" / "10" / "state"))
    wanted = r"the checksum of params/down_blocks.0/conv.1/kernel differs .*there is none before it: train anew elsewhere$"
    assert re.search(wanted, refused(tmp_path, 10))


def test_a_bit_flipped_anywhere_is_harmless_or_refused(tmp_path):
    """Each file of a checkpoint, at its begin, middle and end."""
    folder, whole = saved(tmp_path, 10, 20) / "checkpoints" / "20", tmp_path / "whole"
    shutil.copytree(folder, whole)
    refusals, tries = (
        0,
        [
            (f.relative_to(whole), part)
            for f in whole.rglob("*")
            if f.is_file() and f.stat().st_size
            for part in (0, 0.5, 0.999)
        ],
    )
    with Checkpoints(tmp_path) as all_:
        for name, part in tries:
            flip(folder / name, int((folder / name).stat().st_size * part))
            try:
                found, data, meta = all_.restore(20, abstract(state()))
                same(found, state(20))
                assert (data, meta) == (DATA | {"step": 20}, META)
            except UserError as error:
                assert "--resume 10" in str(error)
                refusals += 1
            shutil.copy(whole / name, folder / name)
    assert refusals > 10


def test_another_state_is_refused_by_its_leaves(tmp_path):
    saved(tmp_path, 10)
    message = refused(tmp_path, 10, state(motion=jnp.zeros(3)))
    assert (
        "missing in it: params/motion, opt_state/1/0/mu/motion, opt_state/1/0/nu/motion" in message
        and "unexpected" not in message
    )
    message = refused(tmp_path, 10, state().replace(params={"conv_in/bias": jnp.zeros(8)}))
    assert "unexpected in it: params/down_blocks.0/conv.1/kernel" in message
    assert (
        "other shape or type: params/conv_in/bias (saved float32[7], wanted float32[8])" in message
    )
    half = state().replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), state().params))
    assert "(saved float32[7], wanted bfloat16[7])" in refused(tmp_path, 10, half)


def test_a_step_that_is_not_there(tmp_path):
    saved(tmp_path, 10, 20)
    assert "no checkpoint of step 15; it holds 10, 20" in refused(tmp_path, 15)
    assert "it holds none" in refused(tmp_path / "new", 1)


def test_what_a_killed_save_left_is_cleaned_up(tmp_path):
    folder = saved(tmp_path, 10, 20) / "checkpoints"
    (folder / "20").rename(folder / "20.orbax-checkpoint-tmp")
    assert "it holds 10" in refused(tmp_path, 20)
    saved(tmp_path, 30)
    assert sorted(path.name for path in folder.iterdir()) == ["10", "30"]


def test_out_of_memory_is_not_called_damage(tmp_path, monkeypatch):
    saved(tmp_path, 10)
    with Checkpoints(tmp_path) as all_, pytest.raises(jax.errors.JaxRuntimeError):
        monkeypatch.setattr(
            all_.manager,
            "restore",
            lambda *a, **k: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")),
        )
        all_.restore(10, abstract(state()))


def test_the_newest_are_kept_and_none_is_saved_behind_a_newer_one(tmp_path):
    with Checkpoints(tmp_path, keep=2) as all_:
        for step in (1, 2, 3, 4):
            all_.save(step, state(step), {}, {})
        all_.wait()
        assert all_.steps() == [3, 4]
        for step in (3, 4):
            with pytest.raises(ValueError, match=f"step {step} cannot be saved"):
                all_.save(step, state(), {}, {})


def test_discarded_checkpoints_are_set_aside_and_their_steps_saved_anew(tmp_path):
    folder = saved(tmp_path, 10, 20, 30) / "checkpoints"
    (folder / "30" / "_CHECKPOINT_METADATA").unlink()
    for again in range(2):
        with Checkpoints(tmp_path) as all_:
            all_.discard_after(10)
            assert all_.steps() == [10]
            for step in (20, 30):
                all_.save(step, state(step + 1 + again), {}, {})
            same(all_.restore(30, abstract(state()))[0], state(31 + again))
            assert all_.steps() == [10, 20, 30]
    aside = {"20.discarded", "30.discarded", "20.discarded1", "30.discarded1"}
    assert {path.name for path in folder.iterdir()} == {"10", "20", "30"} | aside
    assert all((folder / name / "meta").is_dir() for name in aside)


def test_sigterm_is_heard_and_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path) as all_:
        assert not all_.preempted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert all_.preempted(2) and all_.preempted(3)
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(
        target=lambda: saved(tmp_path, 1)
    )  # outside the main thread it is left alone
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before and (tmp_path / "checkpoints" / "1").is_dir()


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
target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), value(0))
with Checkpoints(run) as all_:
    step = max(all_.steps(), default=0)
    if step:
        state, data, meta = all_.restore(step, target)
        assert int(state["step"]) == data["step"] == meta["step"] == step and (state["x"] == value(step)["x"]).all()
    print("resumed", step, flush=True)
    while True:
        step += 1
        all_.save(step, value(step), {"step": step}, {"step": step})
        print("saving", step, flush=True)
"""
)


def child(script, *args, devices=1):
    words = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(devices)
    )


def test_kills_during_saves_leave_the_last_complete_checkpoint(tmp_path):
    rng, torn, last = random.Random(0), 0, 0
    for _ in range(5):
        process = child(KILLED, tmp_path)
        first = process.stdout.readline()
        assert first, process.stderr.read()
        assert int(first.split()[1]) >= last, "a complete checkpoint was passed over"
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        torn, last = (
            torn + any("tmp" in name for name in names),
            max([int(name) for name in names if name.isdecimal()], default=0),
        )
    assert torn and last, "no kill came during a save: this test proved nothing"
    with Checkpoints(tmp_path) as all_:
        assert all_.steps()[-1] == last and all_.read_meta(last) == {"step": last}
        all_.save(last + 1, state(), {}, {})
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if "tmp" in path.name]


SHARDED = (
    START
    + """
count, spec, old, new = int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
mesh = jax.make_mesh((2, count // 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))
rng = np.random.default_rng(0)
kernel, bias = rng.normal(size=(64, 3, 32)).astype(np.float32), rng.normal(size=5).astype(np.float32)
axes = {"rows": ("fsdp",), "columns": (None, None, ("data", "fsdp")), "both": ("data", None, "fsdp")}[spec]
wanted = {"kernel": put(kernel, *axes), "bias": put(bias), "half": put(kernel.astype(jnp.bfloat16), *axes)}
with Checkpoints(run) as all_:
    found = wanted
    if old:
        found, _, _ = all_.restore(old, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted))
    for name, x in found.items():
        assert x.sharding == wanted[name].sharding and np.asarray(x).tobytes() == np.asarray(wanted[name]).tobytes(), name
    print(sorted((path, leaf.checksum) for path, leaf in describe(found).items()))
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0.5 - 1, tree), donate_argnums=0)
    jax.block_until_ready(advance(jax.tree.map(jnp.copy, found)))  # compiled now, so that it follows the save at once
    all_.save(new, found, {}, {})
    for _ in range(5):
        found = advance(found)
"""
)


def test_a_sharded_state_goes_from_8_to_2_to_8_devices(tmp_path):
    said = []
    for count, spec, old, new in [(8, "rows", 0, 1), (2, "columns", 1, 2), (8, "both", 2, 3)]:
        out, err = (
            process := child(SHARDED, tmp_path, count, spec, old, new, devices=count)
        ).communicate()
        assert process.returncode == 0, err
        said.append(out)
    assert said[0] == said[1] == said[2] and "kernel" in said[0]


FULL_DISK = (
    START
    + """
import resource
state = {"x": jax.random.normal(jax.random.key(0), (1_000_000,))}
with Checkpoints(run) as all_:
    all_.save(1, state, {}, {})
    all_.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    all_.save(2, state, {}, {})
    print(all_.steps(), flush=True)
"""
)


def test_a_save_that_fails_is_told_and_leaves_the_one_before(tmp_path):
    out, err = (process := child(FULL_DISK, tmp_path)).communicate()
    assert process.returncode == 1 and out == "[1]\n", err
    assert re.search(
        r"UserError: .*checkpoints: a checkpoint could not be written .*the last complete one is of step 1",
        err,
    ), err


PROCESSES = (
    START.replace("run = ", "import signal, os, time\nrun = ")
    + """
process, port = int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process, coordinator_bind_address=f"127.0.0.1:{port}",
    cluster_detection_method="deactivate", initialization_timeout=60, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=30)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, P("data"))
x = jax.jit(lambda: jnp.arange(4096.0), out_shardings=sharding)()
advance = jax.jit(lambda x: x + 1, donate_argnums=0)
with Checkpoints(run) as all_:
    for step in range(1, 200):
        x = advance(x)
        if step == 3 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if all_.preempted(step):
            all_.save(step, {"x": x}, {"step": step}, {})
            break
        time.sleep(0.05)
    print("saved", step, flush=True)
    found = all_.restore(step, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)})[0]["x"]
    assert all((np.asarray(a.data) == np.asarray(b.data)).all() for a, b in zip(found.addressable_shards, x.addressable_shards))
    assert all_.discard_after(0) is None and all_.steps() == []
    all_.save(step, {"x": x}, {"step": step}, {})
"""
)


def test_two_processes_agree_on_the_step_when_one_is_told_to_stop(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [child(PROCESSES, tmp_path, index, port, devices=2) for index in range(2)]
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][1] + said[1][1]
    step, other = (int(re.search(r"^saved (\d+)$", out, re.M)[1]) for out, _ in said)
    assert step == other and 3 <= step < 199
    with Checkpoints(tmp_path) as all_:
        found, data, _ = all_.restore(
            step, {"x": jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=jnp.zeros(1).sharding)}
        )
    np.testing.assert_array_equal(found["x"], np.arange(4096.0) + step)
    assert data == {"step": step} and sorted(
        path.name for path in (tmp_path / "checkpoints").iterdir()
    ) == sorted([str(step), f"{step}.discarded"])
