"""Of the collectives of a training step, only sums over `data` cross slices (or nodes)."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.devices import device_env

ROOT = Path(__file__).parents[2]


def run_on_eight_devices(*command: str) -> list[dict[str, int]]:
    """The JSON lines of a Python process with 8 virtual devices."""
    process = subprocess.run(
        [sys.executable, *command],
        env=device_env(8),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


# A residual block, whose weights are split, with the embedding of the timesteps of 8 clips.
EMBEDDED = """
import json
import flax.linen as nn
import jax
import jax.numpy as jnp
from ivid2vid_jax.models.layers import ResnetBlock, TimestepMLP
from ivid2vid_jax.parallel import mesh as meshes, sharding
from tests.support.collectives import crossing_collectives

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return ResnetBlock(16, 4)(x, TimestepMLP(32)(t))

sharding.MIN_SHARDED_SIZE = 64
meshes.slice_index = lambda device: device.id // 4
net = Net()
x, t = jnp.zeros((8, 2, 8, 8, 16)), jnp.zeros((8, 16))
params = jax.eval_shape(net.init, jax.random.key(0), x, t)
for sizes in ((2, 2, 2), (4, 2, 1)):
    mesh = meshes.make_mesh(meshes.MeshConfig(*sizes))
    arguments = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        (params, x, t),
        (
            sharding.tree_shardings(params, mesh),
            sharding.batch_sharding("x", x.shape, mesh),
            sharding.batch_sharding("t", t.shape, mesh),
        ),
    )
    loss = lambda *arguments: jnp.square(net.apply(*arguments)).sum()
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss), out_shardings=sharding.tree_shardings(params, mesh))
        text = step.lower(*arguments).compile().as_text()
    slices = [meshes.slice_index(device) for device in mesh.devices.flat]
    print(json.dumps(crossing_collectives(text, slices)))
"""


def test_the_embedding_of_timesteps_does_not_cross_slices():
    """Left to itself, the compiler sends it between slices, 3 times per residual block."""
    for crossing in run_on_eight_devices("-c", EMBEDDED):
        assert set(crossing) == {"all-reduce"}, crossing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temporal", "mesh"), [("conv", "2,2,2"), ("conv,attention", "4,2,1"), ("", "2,4,1")]
)
def test_only_sums_of_a_training_step_cross_slices(temporal, mesh):
    (crossing,) = run_on_eight_devices("-m", "tests.support.collectives", temporal, mesh)
    assert set(crossing) == {"all-reduce"}, crossing
    assert 1 <= crossing["all-reduce"] <= 20  # gradients are summed together


# Between slices the TPU compiler writes each collective as a transfer of this kind.
TRANSFER = re.compile(r" send\(.*_xla_megascale_transfer_type=\"(\w+)\"")


@pytest.mark.skipif(
    "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]', or set TPU_LIBRARY_PATH",
)
@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 1)])
def test_only_sums_cross_slices_by_the_tpu_compiler(monkeypatch, sizes):
    """A whole training step for two slices of 4 chips, with all temporal layers."""
    from tests.support.collectives import compile_step
    from tests.support.tpu_topology import topology_devices

    monkeypatch.setattr("ivid2vid_jax.parallel.sharding.MIN_SHARDED_SIZE", 64)
    text, slices = compile_step(sizes, topology_devices("v5e:2x2", slices=2))
    assert slices == [0] * 4 + [1] * 4
    transfers = TRANSFER.findall(text)
    assert set(transfers) == {"ALL_REDUCE"} and len(transfers) < 200, transfers
    assert "all-gather" in text  # fsdp works within a slice


def test_the_imitated_slices_are_seen():
    """Else the tests above could not fail."""
    from tests.support.collectives import crossing_collectives

    text = """HloModule jit_f
ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %b = f32[4]{0} all-gather(%a), replica_groups=mesh['x'=2,'y'=2] {'x'}, dimensions={0}
  %c = f32[4]{0} all-reduce(%b), replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %d = f32[4]{0} collective-permute(%c), source_target_pairs={{0,1},{1,2}}
}
"""
    assert crossing_collectives(text, [0, 0, 1, 1]) == {"all-gather": 1, "collective-permute": 1}
