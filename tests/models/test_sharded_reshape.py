"""Clips split over devices: folding and unfolding, and a U-Net split over frames."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.devices import device_env

IMPORTS = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.sharded_reshape import (
    fold_positions,
    fold_positions_time_major,
    fold_time,
    shard_over_frames,
    shard_over_positions,
)
from ivid2vid_jax.planning import hlo
from ivid2vid_jax.weights.pipeline_folder import param_shapes


def make_mesh(data, fsdp, frames):
    names = ("data", "fsdp", "frames")
    return jax.make_mesh((data, fsdp, frames), names, axis_types=(AxisType.Auto,) * 3)
"""

# Every fold, on four meshes: unfolding restores the clip, every row is complete (in any order), and
# only folding positions of split frames communicates, by all-to-all.
FOLDS = """
x = jnp.arange(4 * 8 * 4 * 2 * 3.0).reshape(4, 8, 4, 2, 3)


def round_trip(x, fold):
    rows, unfold = fold(x if fold is fold_time else shard_over_positions(x))
    assert rows.ndim == (4 if fold is fold_time else 3)
    doubled = unfold(2 * rows)
    doubled = doubled if fold is fold_time else shard_over_frames(doubled)
    rows = rows.swapaxes(0, 1) if fold is fold_positions_time_major else rows
    return rows.reshape(len(rows), -1).sum(1), doubled


for shape in ((1, 1, 4), (2, 1, 2), (2, 2, 1), (1, 2, 2)):
    with jax.set_mesh(make_mesh(*shape)):
        clip = jax.device_put(x, P(("data", "fsdp"), "frames"))
        for fold in (fold_time, fold_positions, fold_positions_time_major):
            sums, doubled = jax.jit(lambda x: round_trip(x, fold))(clip)
            np.testing.assert_array_equal(doubled, 2 * x)
            row_axes = (2, 3, 4) if fold is fold_time else (1, 4)
            expected_sums = np.asarray(x).sum(row_axes).ravel()
            np.testing.assert_array_equal(np.sort(sums), np.sort(expected_sums))
            program = jax.jit(lambda x: round_trip(x, fold)[1]).lower(clip).compile()
            sent = hlo.sent_bytes(program.as_text(), 4)
            may_send = fold is not fold_time and shape[2] > 1
            assert not sent or (may_send and set(sent) == {"all-to-all"}), (shape, sent)
"""

# The U-Net split over frames: the same result, a quarter of the work per device, little sent.
UNET = """
config = UNetConfig(
    in_channels=8,
    block_out_channels=(32,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=32,
    norm_num_groups=8,
    temporal=("conv", "attention"),
)
unet, rng = InflatedUNet3D(config, "xla"), np.random.default_rng(0)
params = jax.tree.map(
    lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape), x.dtype),
    param_shapes("unet", config),
)
x = jnp.asarray(rng.standard_normal((3, 8, 8, 8, 8)), jnp.float32)
t, text = jnp.full(3, 300), jnp.asarray(rng.standard_normal((3, 5, 32)), jnp.float32)


def run(params, x):
    return unet.apply({"params": params}, x, t, text)


single = jax.jit(run).lower(params, x).compile()
expected = single(params, x)
mesh = make_mesh(1, 1, 4)
with jax.set_mesh(mesh):
    params, x = jax.device_put(params, P()), jax.device_put(x, P(None, "frames"))
    over_frames = NamedSharding(mesh, P(None, "frames"))
    split = jax.jit(run, out_shardings=over_frames).lower(params, x).compile()
    actual = split(params, x)
assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()
flops = [program.cost_analysis()["flops"] for program in (single, split)]
assert flops[0] > 3.6 * flops[1], flops
sent = hlo.sent_bytes(split.as_text(), 4)
assert set(sent) <= {"all-to-all", "all-reduce"}, sent
assert sent["all-reduce"] < 0.1 * sent["all-to-all"], sent
"""


@pytest.mark.parametrize("script", [FOLDS, UNET], ids=["folds", "unet"])
def test_on_four_devices(script):
    process = subprocess.run(
        [sys.executable, "-c", IMPORTS + script],
        env=device_env(4),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
