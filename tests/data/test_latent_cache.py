"""The latent cache: what the networks encode, under keys for each model and crop setting."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax import prepare
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.data.latent_cache import open_cache
from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.models import AutoencoderKL
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.training.encode_latents import latent_cache_keys
from ivid2vid_jax.training.validation import Validation
from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder
from tests.support.tiny_run import tiny as tiny_config

CONFIG = LoaderConfig(batch=4, frames=2, size=16)


def write_cache(data, model, text):
    args = prepare.PrepareArgs(
        data=str(data), cache_for=str(model), size=16, frames=2, cache_text=text
    )
    prepare.run(args)


@pytest.fixture(scope="module")
def cached(tiny, tmp_path_factory):
    """(dataset, model) with both kinds of cache."""
    folder = tmp_path_factory.mktemp("data") / "triplets"
    args = prepare.PrepareArgs(
        data="shapes", output=folder, count=20, size=16, frames=3, validation=0.3, workers=1
    )
    prepare.run(args)
    for text in (True, False):
        write_cache(folder, tiny, text)
    return folder, tiny


def test_it_holds_the_networks_encodings(cached):
    data, model = cached
    pipe, triplets = pipeline.load(model), open_dataset(data, "train")
    vae, params = AutoencoderKL(pipe.folder.vae), {"params": pipe.params["vae"]}
    encode = jax.jit(lambda clip: vae.apply(params, clip, method="encode"))
    cache = open_cache(data, latent_cache_keys(pipe.folder, CONFIG, text=True), "train")
    assert len(cache) == len(triplets)
    assert cache.augmentations == 1
    for i in (0, len(triplets) - 1):
        row, triplet = cache.row(i, 0), triplets[i]
        assert row["source_mean"].shape == (2, 8, 8, 4)
        assert row["source_mean"].dtype == np.float16
        assert row["id"] == triplet.id
        for name in ("source", "edited"):
            clip = getattr(triplet, name) / np.float32(127.5) - 1
            # The crop starts at frame 0 or 1.
            posteriors = [encode(clip[j : j + 2]) for j in (0, 1)]
            errors = [np.abs(mean - row[f"{name}_mean"]).max() for mean, _ in posteriors]
            start = int(np.argmin(errors))
            assert errors[start] < 2e-3
            assert np.abs(posteriors[start][1] - row[f"{name}_std"]).max() < 2e-3
        embedding = pipe.encode_text([triplet.instruction])[0]
        np.testing.assert_allclose(row["text"], embedding, atol=2e-3)


def test_the_loader_takes_the_first_cache_that_exists(cached):
    data, model = cached
    folder = open_pipeline_folder(model)
    with_text, without = latent_cache_keys(folder, CONFIG, text=True)
    assert (without,) == latent_cache_keys(folder, CONFIG, text=False)

    def first_batch(view, keys, tokens):
        def tokenize(text):
            return np.zeros(tokens, np.int32)

        with Loader(CONFIG, (str(data),), view, tokenize, seed=0, cache=keys) as loader:
            return next(loader)[0]

    for keys, has_text in (
        ((with_text, without), True),
        ((without,), False),
        (("nothing", without), False),
    ):
        batch = first_batch("edit", keys, tokens=3)
        assert ("text" in batch) == has_text
        assert batch["target_mean"].shape == (4, 2, 8, 8, 4)
        assert batch["tokens"].shape == (4, 3)
    batch = first_batch("caption", (without,), tokens=1)
    assert batch.keys() == {"target_mean", "target_std", "tokens", "serial"}


def flip_last_bit(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_another_model_crop_or_text_encoder_is_another_cache(cached, tmp_path):
    data, model = cached
    folder = open_pipeline_folder(model)
    keys = latent_cache_keys(folder, CONFIG, text=True)
    for change in (dict(frames=3), dict(size=24), dict(stride=2), dict(crop=0.9), dict(flip=0.5)):
        config = dataclasses.replace(CONFIG, **change)
        assert not set(latent_cache_keys(folder, config, text=True)) & set(keys)
    config = dataclasses.replace(CONFIG, batch=8, images=0.5)
    assert latent_cache_keys(folder, config, text=True) == keys
    for part, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        other = tmp_path / part
        shutil.copytree(model, other)
        flip_last_bit(other / part / f"{name}.safetensors")
        other_keys = latent_cache_keys(open_pipeline_folder(other), CONFIG, text=True)
        assert other_keys[0] != keys[0]
        assert (other_keys[1] == keys[1]) == (part == "text_encoder")
        with pytest.raises(UserError, match="does not exist; run prepare with --cache-for"):
            open_cache(data, other_keys[:1], "train")


def test_an_unfinished_cache_is_refused_and_can_be_completed(cached, tmp_path):
    data, model = cached
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    keys = latent_cache_keys(open_pipeline_folder(model), CONFIG, text=False)
    (copy / "cache" / keys[0] / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        open_cache(copy, keys, "train")
    write_cache(copy, model, text=False)
    row, expected = (open_cache(folder, keys, "train").row(0, 0) for folder in (copy, data))
    assert np.array_equal(row["source_mean"], expected["source_mean"])
    assert jnp.isfinite(row["source_std"]).all()


def test_the_validation_of_a_cached_run_reads_the_cache(cached):
    data, model = cached
    keys = latent_cache_keys(open_pipeline_folder(model), CONFIG, text=True)
    config = tiny_config("unused", data=(str(data),), loader=CONFIG)

    def batch(keys):
        def tokenize(text):
            return np.zeros(3, np.int32)

        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        return Validation(config, tokenize, "edit", None, mesh, keys).load_batches()[0]

    from_cache, from_pixels = batch(keys), batch(())
    assert {"target_mean", "target_std", "source_mean", "text", "t"} <= from_cache.keys()
    assert not {"source", "edited"} & from_cache.keys() and "source" in from_pixels
    # The same clips: the first frames of both were encoded from the same triplets.
    assert np.array_equal(from_cache["serial"], from_pixels["serial"])
