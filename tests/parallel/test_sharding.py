"""How parameters and batches are placed on the mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.parallel.mesh import AXES


def abstract_mesh(data=1, fsdp=1, frames=1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, frames), AXES)


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
        ("serial", (6,), r"--loader\.batch 6 .* data x fsdp = 4 .*give --loader\.batch 4 or 8,"),
        ("serial", (2,), r"--loader\.batch 2 .* data x fsdp = 4 .*give --loader\.batch 4,"),
        ("source", (8, 6, 16, 16, 3), r"source: 6 frames .* --mesh\.frames 4; change one of them"),
    ],
)
def test_batches_that_cannot_be_split_are_refused(name, shape, message):
    with pytest.raises(UserError, match=message):
        sharding.batch_sharding(name, shape, abstract_mesh(2, 2, 4))


@pytest.mark.parametrize(
    ("batch", "frames", "message"),
    [(6, 8, r"--loader\.batch 6 is not a multiple"), (8, 6, r"--loader\.frames: 6 frames are not")],
)
def test_a_batch_is_checked_before_it_is_loaded(batch, frames, message):
    with pytest.raises(UserError, match=message):
        sharding.check_batch(batch, frames, 1, abstract_mesh(2, 2, 4))


def test_micro_batches_that_cannot_be_split_evenly_are_warned_of(caplog):
    mesh = abstract_mesh(2, 2)
    for batch, frames in ((8, 6), (8, 1)):
        sharding.check_batch(batch, frames, 2, mesh)
        sharding.check_batch(batch, frames, 1, mesh)
    assert not caplog.records
    sharding.check_batch(8, 6, 4, mesh)
    (record,) = caplog.records
    assert record.getMessage().startswith("2 clips per micro-batch (--loader.batch 8 / ")


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
