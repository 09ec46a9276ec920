"""The autoencoder against diffusers', and the VAE codec's chunks and tiles."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.inference import vae_codec
from ivid2vid_jax.inference.vae_codec import VAECodec, spans, taper
from ivid2vid_jax.models import AutoencoderConfig, AutoencoderKL
from ivid2vid_jax.models.autoencoder import Posterior
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.pipeline_folder import param_shapes
from tests.support import factory
from tests.support.references import torch

RNG = np.random.default_rng(0)


def load(module, folder):
    """(config, parameters) of a diffusers autoencoder, through its own files."""
    module.save_pretrained(folder)
    config = AutoencoderConfig.from_json(read_json(folder / "config.json"))
    return config, components.load_component("vae", folder, param_shapes("vae", config))


def check_parity(module, folder, side, tolerance):
    config, params = load(module, folder)
    model = AutoencoderKL(config)
    pixels = RNG.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = module.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).latent_dist
        decoded = module.decode(posterior.mean).sample.numpy().transpose(0, 2, 3, 1)
    encode, decode = (
        jax.jit(partial(model.apply, method=method)) for method in (model.encode, model.decode)
    )
    ours = encode({"params": params}, pixels)
    mean, std = (tensor.numpy().transpose(0, 2, 3, 1) for tensor in (posterior.mean, posterior.std))
    assert factory.relative_difference(ours.mode(), mean) <= tolerance
    assert factory.relative_difference(ours.std, std) <= tolerance
    assert factory.relative_difference(decode({"params": params}, mean), decoded) <= tolerance


def test_samples_have_the_posteriors_deviation():
    posterior = Posterior(mean=jnp.zeros((1000,)), std=jnp.full((1000,), 2.0))
    samples = np.asarray(posterior.sample(jax.random.key(0)))
    assert samples.std() == pytest.approx(2.0, rel=0.1)


def test_equals_diffusers(tmp_path):
    check_parity(factory.vae(factory.VAE_TINY), tmp_path, 16, 2e-5)


@pytest.mark.slow
def test_equals_diffusers_at_real_size(tmp_path):
    check_parity(factory.vae(factory.VAE_SD), tmp_path, 128, 1e-4)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    config, params = load(factory.vae(factory.VAE_TINY), tmp_path_factory.mktemp("vae"))
    return VAECodec(config, jnp.float32), params


def test_chunks_do_not_change_the_result(codec):
    codec, params = codec
    frames = RNG.integers(0, 256, (23, 16, 24, 3), np.uint8)
    latents = codec.encode(params, frames)
    assert latents.shape == (23, 8, 12, 4)
    np.testing.assert_allclose(latents[17:18], codec.encode(params, frames[17:18]), atol=1e-5)
    decoded = list(codec.decode(params, latents))
    assert len(decoded) == 23 and decoded[0].dtype == np.uint8 and decoded[0].shape == (16, 24, 3)
    programs = codec._decode._cache_size()
    assert programs == 2, "16 frames, and 7 padded to 8"
    for length in (5, 6, 8, 9, 16, 40):
        assert len(list(codec.decode(params, np.resize(latents, (length, 8, 12, 4))))) == length
    assert codec._decode._cache_size() == programs, "these lengths need no other program"


def test_tiles_join_without_a_seam(codec, monkeypatch):
    """An autoencoder with a receptive field of one pixel gives the same picture with tiles."""
    codec, _ = codec
    monkeypatch.setattr(vae_codec, "TILED_ABOVE", 40 * 40)
    monkeypatch.setattr(vae_codec, "TILE", 32)
    monkeypatch.setattr(vae_codec, "OVERLAP", 8)
    picture = RNG.uniform(0, 255, (1, 70, 50, 3)).astype(np.float32)
    shapes = set()

    def halve(tile):
        shapes.add(tile.shape)
        return jnp.asarray(tile)[:, ::2, ::2]

    np.testing.assert_allclose(codec.tiled(halve, picture, 2, 1), picture[:, ::2, ::2], rtol=1e-6)
    assert shapes == {(1, 32, 32, 3)}, "all tiles have one shape, so one program serves all"
    double = codec.tiled(lambda tile: jnp.asarray(tile).repeat(2, 1).repeat(2, 2), picture, 1, 2)
    np.testing.assert_allclose(double, picture.repeat(2, 1).repeat(2, 2), rtol=1e-6)


def test_tiled_frames_are_close_to_whole_ones(codec, monkeypatch):
    codec, params = codec
    # White noise: the statistics of a tile's norms are those of the frame's.
    frames = RNG.integers(0, 256, (1, 64, 64, 3), np.uint8)
    whole = codec.encode(params, frames)
    monkeypatch.setattr(vae_codec, "TILED_ABOVE", 32 * 32)
    monkeypatch.setattr(vae_codec, "TILE", 32)
    monkeypatch.setattr(vae_codec, "OVERLAP", 16)
    tiled = codec.encode(params, frames)
    assert tiled.shape == whole.shape
    assert 0 < np.abs(tiled - whole).mean() / np.abs(whole).mean() < 0.15


@pytest.mark.parametrize(
    ("length", "tile", "overlap"),
    [(10, 16, 4), (16, 16, 4), (17, 16, 4), (100, 16, 4), (135, 64, 16)],
)
def test_spans_cover_and_overlap(length, tile, overlap):
    tiles = spans(length, tile, overlap)
    assert tiles[0].start == 0 and tiles[-1].stop == length
    assert len({s.stop - s.start for s in tiles}) == 1
    assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(tiles))
    assert taper(tile, overlap).min() > 0 and taper(tile, overlap).max() == 1


def test_unsupported_configs_are_refused():
    with pytest.raises(ValueError, match="latents_mean"):
        AutoencoderConfig.from_json(dict(latents_mean=[0.0]))
