"""The validation loss: the same in chunks, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from ivid2vid_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from ivid2vid_jax.training import validation
from ivid2vid_jax.training.params import flatten
from ivid2vid_jax.training.validation import Validation, chunk_count
from tests.support.tiny_objective import KEY, fake_unet
from tests.support.tiny_run import tiny


@pytest.mark.parametrize(
    ("batch", "frames", "size", "mesh", "task", "count"),
    [
        (64, 16, 256, (1, 16, 1), "edit", 4),  # one clip at a time on each of 16 chips
        (64, 16, 256, (1, 16, 2), "edit", 2),  # half of two clips
        (64, 16, 512, (1, 16, 1), "edit", 4),  # a clip is never cut
        (32, 8, 64, (1, 1, 1), "edit", 1),
        (6, 16, 128, (1, 1, 1), "edit", 2),  # 4 would fit, but does not divide
        (64, 16, 256, (1, 16, 1), "clip", 1),
    ],
)
def test_a_device_evaluates_about_a_million_pixels_at_once(batch, frames, size, mesh, task, count):
    config = tiny(
        "unused", task=task, loader__batch=batch, loader__frames=frames, loader__size=size
    )
    assert chunk_count(config, AbstractMesh(mesh, AXES, (AxisType.Auto,) * 3)) == count


def evaluate(tiny_objective, monkeypatch, pixels):
    """Losses by clip of the tiny batch, and the bytes of temporary arrays."""
    monkeypatch.setattr(validation, "CHUNK_PIXELS", pixels)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    objective = tiny_objective.objective()
    objective.denoise = lambda params, x_t, t, cond, rngs: fake_unet(x_t, t, cond)
    config = tiny("unused", loader__batch=8)
    loss = Validation(config, None, "edit", objective, mesh).losses
    batch = tiny_objective.batch | {"t": np.arange(8, dtype=np.int32) * 100}
    args = {}, flatten(tiny_objective.params | {"unet": {"unused": jnp.zeros(1)}}), KEY, batch
    temporary = loss.lower(*args).compile().memory_analysis().temp_size_in_bytes
    return jax.device_get(loss(*args)), temporary


def test_chunks_give_the_same_losses_in_the_same_order_in_less_memory(tiny_objective, monkeypatch):
    clip = 2 * 16 * 16
    whole, most = evaluate(tiny_objective, monkeypatch, 8 * clip)
    assert len(set(whole["loss"].tolist())) == 8
    for pixels in (2 * clip, 1):
        chunked, less = evaluate(tiny_objective, monkeypatch, pixels)
        assert whole.keys() == chunked.keys()
        for name, values in whole.items():
            np.testing.assert_allclose(chunked[name], values, rtol=1e-5, err_msg=name)
        assert less < most / 2
