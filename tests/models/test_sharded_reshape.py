"""A clip split over devices: rows and positions come back as they were, and a net split over frames does its share of the work and sends little."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.devices import environment

HEAD = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.sharded_reshape import fold_time, fold_positions_time_major, fold_positions, shard_over_frames, shard_over_positions
from ivid2vid_jax.planning import hlo
from ivid2vid_jax.weights.pipeline_folder import param_shapes


def mesh(data, fsdp, frames):
    return jax.make_mesh((data, fsdp, frames), ("data", "fsdp", "frames"), axis_types=(AxisType.Auto,) * 3)
"""

ROWS = """
x = jnp.arange(4 * 8 * 4 * 2 * 3.0).reshape(4, 8, 4, 2, 3)
for shape in ((1, 1, 4), (2, 1, 2), (2, 2, 1), (1, 2, 2)):
    with jax.set_mesh(mesh(*shape)):
        placed = jax.device_put(x, P(("data", "fsdp"), "frames"))
        for there in (fold_time, fold_positions, fold_positions_time_major):

            def back_and_forth(x, there=there):
                rows, back = there(x if there is fold_time else shard_over_positions(x))
                assert rows.ndim == (4 if there is fold_time else 3)
                doubled = back(2 * rows)
                rows = rows.swapaxes(0, 1) if there is fold_positions_time_major else rows
                return rows.reshape(len(rows), -1).sum(1), doubled if there is fold_time else shard_over_frames(doubled)

            sums, doubled = jax.jit(back_and_forth)(placed)
            np.testing.assert_array_equal(doubled, 2 * x)
            axes = (2, 3, 4) if there is fold_time else (1, 4)
            np.testing.assert_array_equal(np.sort(sums), np.sort(np.asarray(x).sum(axes).ravel()))  # every row is whole, in whatever order
            sent = hlo.sent(jax.jit(lambda x: back_and_forth(x)[1]).lower(placed).compile().as_text(), 4)
            assert not sent or (there is not fold_time and shape[2] > 1 and set(sent) == {"all-to-all"}), (shape, sent)
"""

NET = """
config = UNetConfig(
    in_channels=8, block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, attention_head_dim=4, cross_attention_dim=32, norm_num_groups=8,
    temporal=("conv", "attention"),
)
net, params, rng = InflatedUNet3D(config, "xla"), param_shapes("unet", config), np.random.default_rng(0)
params = jax.tree.map(lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape), x.dtype), params)
x, t, text = jnp.asarray(rng.standard_normal((3, 8, 8, 8, 8)), jnp.float32), jnp.full(3, 300), jnp.asarray(rng.standard_normal((3, 5, 32)), jnp.float32)
run = lambda params, x: net.apply({"params": params}, x, t, text)
whole = jax.jit(run).lower(params, x).compile()
with jax.set_mesh(mesh(1, 1, 4)):
    params, shares = jax.device_put(params, P()), jax.device_put(x, P(None, "frames"))
    split = jax.jit(run, out_shardings=NamedSharding(mesh(1, 1, 4), P(None, "frames"))).lower(params, shares).compile()
    found = split(params, shares)
wanted = net.apply({"params": params}, x, t, text)
assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
flops = [program.cost_analysis()["flops"] for program in (whole, split)]
sent = hlo.sent(split.as_text(), 4)
assert flops[0] > 3.6 * flops[1], flops
assert set(sent) <= {"all-to-all", "all-reduce"} and sent["all-reduce"] < 0.1 * sent["all-to-all"], sent
"""


@pytest.mark.parametrize("script", [ROWS, NET], ids=["rows", "net"])
def test_on_four_devices(script):
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script],
        env=environment(4),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
