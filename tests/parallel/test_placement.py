"""Two processes place weights and batches, and gather a tree."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.support.devices import device_env

SCRIPT = """
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.parallel import sharding

address, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, process, cluster_detection_method="deactivate")

def refuse(*_, **__):
    raise AssertionError("an array was compared between processes")

multihost_utils.assert_equal = refuse

# The devices of the processes alternate, as on slices where the order follows the interconnect.
order = np.array(jax.devices())[[0, 2, 1, 3]]
mesh = Mesh(order.reshape(4, 1, 1), ("data", "fsdp", "frames"))
rows = np.arange(4)[:, None] + 10 * process + np.zeros((1, 3), int)
batch = sharding.put_batch({"tokens": rows.astype(np.int32), "serial": rows[:, 0]}, mesh)
assert batch["tokens"].shape == (8, 3)
held = sorted(batch["serial"].addressable_shards, key=lambda shard: shard.index[0].start)
assert np.concatenate([shard.data for shard in held]).tolist() == rows[:, 0].tolist(), held
starts = [shard.index[0].start for shard in held]
assert starts == [2 * process, 4 + 2 * process], starts

host = {
    "kernel": np.arange(24, dtype=np.float32).reshape(8, 3),
    "bias": np.arange(3, dtype=np.float32),
    "scale": np.float32(2) * np.ones(()),
}
specs = {"kernel": P("data"), "bias": P(), "scale": P()}
tree = {
    name: sharding.put(array, NamedSharding(mesh, specs[name])) for name, array in host.items()
}
assert tree["kernel"].addressable_shards[0].data.shape == (2, 3)
for _ in range(2):
    whole = sharding.gather(tree, mesh)
    for name, array in host.items():
        assert whole[name].is_fully_replicated
        np.testing.assert_array_equal(np.asarray(whole[name]), array)
assert sharding.gather_program(mesh)._cache_size() == 1
print("done")
"""


def test_two_processes_place_and_gather_arrays():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, address, str(process)],
            env=device_env(2),
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(output.endswith("done\n") for output, _ in outputs), outputs
