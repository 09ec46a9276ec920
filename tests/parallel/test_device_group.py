"""One edit over several devices is the edit of one device; its program is split, not copied."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.parallel.device_group import DeviceGroup
from ivid2vid_jax.utils.errors import UserError
from tests.support.devices import environment

SCRIPT = """
import sys

import jax
import numpy as np

from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.parallel.device_group import FRAMES_AXIS

clip = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
edited = {}
for devices in (1, 4):
    pipe = pipeline.load(sys.argv[1], devices=devices)
    for frames in (20, 8):  # the whole clip at once, its frames split; three windows, of which each device sees one
        edited[devices, frames] = pipe.edit(clip, "make it red", steps=3, size=16, frames=frames, guide_from=0.3).astype(int)
for frames in (20, 8):
    difference = np.abs(edited[1, frames] - edited[4, frames])
    assert difference.max() <= 2 and difference.mean() < 0.01, (frames, difference.max(), difference.mean())
shares = {shard.data.shape for shard in pipe.devices.put(np.zeros((20, 8, 8, 4)), FRAMES_AXIS).addressable_shards}
assert shares == {(5, 8, 8, 4)}, shares
assert pipeline.load(sys.argv[1]).devices.count == 4
"""


def test_an_edit_over_four_devices_is_that_of_one(tiny):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny)],
        env=environment(4),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("count", [0, 9999])
def test_devices_that_are_not_there_are_refused(tiny, count):
    with pytest.raises(
        UserError, match=f"--devices {count} must be between 1 and the {jax.local_device_count()}"
    ):
        pipeline.load(tiny, devices=count)


def test_one_device_needs_no_mesh():
    assert DeviceGroup(1).meshes == {}
