"""An edit over several devices gives the result of one device, with its arrays split."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.parallel.device_group import DeviceGroup
from tests.support.devices import device_env

# Windows of 20 frames hold the whole clip, and its frames are split. Windows of 8 frames are three,
# one per device.
SCRIPT = """
import sys

import jax
import numpy as np

from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.parallel.device_group import FRAMES_AXIS

clip = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
options = dict(steps=3, size=16, guide_from=0.3)
edits = {}
for devices in (1, 4):
    pipe = pipeline.load(sys.argv[1], devices=devices)
    for frames in (20, 8):
        edit = pipe.edit(clip, "make it red", frames=frames, **options)
        edits[devices, frames] = edit.astype(int)
for frames in (20, 8):
    error = np.abs(edits[1, frames] - edits[4, frames])
    assert error.max() <= 2 and error.mean() < 0.01, (frames, error.max(), error.mean())
split = pipe.devices.put(np.zeros((20, 8, 8, 4)), FRAMES_AXIS)
shapes = {shard.data.shape for shard in split.addressable_shards}
assert shapes == {(5, 8, 8, 4)}, shapes
assert pipeline.load(sys.argv[1]).devices.count == 4
"""


@pytest.mark.slow
def test_an_edit_over_four_devices_equals_that_of_one(tiny):
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny)],
        env=device_env(4),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.parametrize("count", [0, 9999])
def test_more_devices_than_there_are_is_refused(tiny, count):
    message = f"--devices {count} must be between 1 and the {jax.local_device_count()}"
    with pytest.raises(UserError, match=message):
        pipeline.load(tiny, devices=count)


def test_one_device_needs_no_mesh():
    assert DeviceGroup(1).meshes == {}
