"""The mesh, and how parameters and batches are placed on it."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.parallel.mesh import AXES, MeshConfig, make_mesh


def abstract_mesh(data=1, fsdp=1, frames=1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, frames), AXES)


def fake_devices(*process_indices):
    return [SimpleNamespace(process_index=index) for index in process_indices]


EIGHT_DEVICES = fake_devices(*[0] * 8)
TWO_PER_PROCESS = fake_devices(0, 0, 1, 1, 2, 2, 3, 3)


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (MeshConfig(fsdp=-1), EIGHT_DEVICES, r"'data': -1, 'fsdp': -1.*at most one may be -1"),
        (MeshConfig(fsdp=0), EIGHT_DEVICES, r"'fsdp': 0.*must be positive"),
        (MeshConfig(data=1, frames=-2), EIGHT_DEVICES, r"'frames': -2.*must be positive"),
        (MeshConfig(2, 2, 1), EIGHT_DEVICES, r"2 x 2 x 1 .* 8 devices; let one .* be -1"),
        (MeshConfig(fsdp=3), EIGHT_DEVICES, r"2 x 3 x 1 .* 8 devices"),
        (MeshConfig(frames=4), TWO_PER_PROCESS, r"frames 4 does not divide the 2 devices of one"),
    ],
)
def test_a_mesh_that_does_not_match_the_devices_is_refused(config, devices, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config, devices)


def test_an_axis_of_minus_1_takes_the_remaining_devices():
    expected = {"data": jax.device_count(), "fsdp": 1, "frames": 1}
    assert dict(make_mesh(MeshConfig()).shape) == expected
    single = make_mesh(MeshConfig(data=1, fsdp=-1), jax.devices()[:1])
    assert dict(single.shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
    ("shape", "size", "spec"),
    [
        ((128, 256), 4, P(None, "fsdp")),
        ((256, 128), 4, P("fsdp", None)),
        ((3, 3, 64, 64), 8, P(None, None, "fsdp", None)),  # the first of equal axes
        ((3, 1, 1, 100, 90), 4, P(None, None, None, "fsdp", None)),
        ((999, 128), 8, P(None, "fsdp")),  # the largest is not divisible
        ((999, 129), 8, P()),
        ((128, 128), 1, P()),
        ((2**14 - 8,), 8, P()),  # small
        ((2**14,), 8, P("fsdp")),
        ((), 8, P()),
    ],
)
def test_fsdp_splits_the_largest_divisible_axis(shape, size, spec):
    assert sharding.fsdp_spec(shape, abstract_mesh(data=2, fsdp=size)) == spec


def test_the_first_matching_rule_wins_and_large_unsplit_leaves_are_logged(caplog):
    tree = {
        "unet/kernel": jax.ShapeDtypeStruct((256, 256), "float32"),
        "odd/kernel": jax.ShapeDtypeStruct((201, 201), "float32"),
        "step": np.int32(0),
    }
    mesh = abstract_mesh(fsdp=2)
    with caplog.at_level("INFO"):
        shardings = sharding.tree_shardings({"params": tree}, mesh)["params"]
    assert {name: s.spec for name, s in shardings.items()} == {
        "unet/kernel": P("fsdp", None),
        "odd/kernel": P(),
        "step": P(),
    }
    assert [record.getMessage() for record in caplog.records] == [
        "params/odd/kernel [201, 201] is copied to every device: no axis is a multiple of 2"
    ]
    rules = (("unet", "replicate"), (r".*", "fsdp"))
    assert sharding.tree_shardings(tree, mesh, rules)["unet/kernel"].spec == P()


def test_clips_and_frames_of_a_batch_are_split():
    mesh, clips = abstract_mesh(2, 2, 4), ("data", "fsdp")

    def spec(name, shape):
        return sharding.batch_sharding(name, shape, mesh).spec

    assert spec("source", (8, 8, 16, 16, 3)) == P(clips, "frames")
    assert spec("source", (8, 1, 16, 16, 3)) == P(clips)  # still images
    assert spec("tokens", (8, 77)) == spec("serial", (8,)) == P(clips)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("serial", (6,), r"--loader\.batch 6 .* data x fsdp = 4"),
        ("source", (8, 6, 16, 16, 3), r"source: 6 frames .* --mesh\.frames 4"),
    ],
)
def test_batches_that_cannot_be_split_are_refused(name, shape, message):
    with pytest.raises(UserError, match=message):
        sharding.batch_sharding(name, shape, abstract_mesh(2, 2, 4))


def test_a_process_places_its_part_of_the_batch(monkeypatch):
    """Each of two processes has half of the rows; the global shape covers both."""
    calls = []

    def record(sharding, part, shape):
        calls.append((sharding.spec, part.shape, shape))

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "make_array_from_process_local_data", record)
    batch = {"clip": np.zeros((3, 4, 8, 8, 3), np.uint8), "serial": np.zeros(3, np.uint32)}
    sharding.put_batch(batch, abstract_mesh(data=2, frames=2))
    assert calls == [
        (P(("data", "fsdp"), "frames"), (3, 4, 8, 8, 3), (6, 4, 8, 8, 3)),
        (P(("data", "fsdp")), (3,), (6,)),
    ]
