"""The autoencoder gets the same pixels in training, in the latent cache and in inference."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.inference import vae_codec
from ivid2vid_jax.models.autoencoder import Posterior
from ivid2vid_jax.training import encode_latents, objectives
from tests.support.tiny_run import tiny

# [T, H, W, 3]: each of the 256 grey levels once, as one frame of 16 x 16.
LEVELS = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=-1)


class RecordingVAE:
    """Stands in for the autoencoder: the posterior's mean is what its first layer would get."""

    def __init__(self, config, dtype):
        self.dtype = dtype

    def apply(self, variables, pixels, method):
        pixels = pixels.astype(self.dtype).astype(jnp.float32)
        return Posterior(pixels, jnp.ones_like(pixels))

    encode = decode = None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_all_grey_levels_are_those_of_inference(tiny_objective, monkeypatch, dtype):
    for module in (vae_codec, encode_latents, objectives):
        monkeypatch.setattr(module, "AutoencoderKL", RecordingVAE)
    folder = tiny_objective.folder
    codec = vae_codec.VAECodec(folder.vae, dtype)
    inference = np.asarray(codec.encode({}, iter(LEVELS)))
    # XLA multiplies by the reciprocal of 127.5: the last bit may differ.
    exact = LEVELS.astype(np.float64) / 127.5 - 1
    rounding = float(jnp.finfo(dtype).eps) / 2 * np.abs(exact) + 2**-23
    assert (np.abs(inference - exact) <= rounding).all()

    objective = objectives.make_objective(
        tiny("unused"), folder, tiny_objective.null, dtype, frozenset()
    )
    batch = {"source": LEVELS[None], "edited": LEVELS[None]}
    for which in ("source", "target"):
        posterior = jax.jit(partial(objective.posterior, {"vae": {}}, which=which))
        mean = posterior(batch=batch).mean[0]
        np.testing.assert_array_equal(mean, inference)
    pipe = SimpleNamespace(folder=folder, dtype=dtype, params={"vae": {}})
    np.testing.assert_array_equal(encode_latents.posterior_encoder(pipe)(LEVELS)[0], inference)
