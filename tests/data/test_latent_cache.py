"""The latent cache: what the nets would make of the pixels, under keys that tell models, cuts and trained text encoders apart."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax import prepare
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.data.latent_cache import open_cache
from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.models import AutoencoderKL
from ivid2vid_jax.training import encode_latents
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder

CUT = LoaderConfig(batch=4, frames=2, size=16)


@pytest.fixture(scope="module")
def cached(tiny, tmp_path_factory):
    """(dataset, model) with both kinds of cache."""
    folder = tmp_path_factory.mktemp("data") / "triplets"
    prepare.run(
        prepare.PrepareArgs(
            data="shapes", output=folder, count=20, size=16, frames=3, validation=0.3, workers=1
        )
    )
    for text in (True, False):
        prepare.run(
            prepare.PrepareArgs(
                data=str(folder), cache_for=str(tiny), size=16, frames=2, cache_text=text
            )
        )
    return folder, tiny


def test_holds_what_the_nets_make_of_the_pixels(cached):
    data, model = cached
    pipe, source = pipeline.load(model), open_dataset(data, "train")
    cache = open_cache(data, encode_latents.latent_cache_keys(pipe.folder, CUT, text=True), "train")
    assert len(cache) == len(source) and cache.augmentations == 1
    for i in (0, len(source) - 1):
        row, triplet = cache.row(i, 0), source[i]
        assert (
            row["source_mean"].shape == (2, 8, 8, 4)
            and row["source_mean"].dtype == np.float16
            and row["id"] == triplet.id
        )
        for name, clip in (("source", triplet.source), ("edited", triplet.edited)):
            found = [
                AutoencoderKL(pipe.folder.vae).apply(
                    {"params": pipe.params["vae"]},
                    clip[j : j + 2] / np.float32(127.5) - 1,
                    method="encode",
                )
                for j in (0, 1)
            ]
            gaps = [
                np.abs(np.asarray(each[0]) - row[f"{name}_mean"]).max() for each in found
            ]  # the cut starts at frame 0 or 1
            start = int(np.argmin(gaps))
            assert (
                gaps[start] < 2e-3
                and np.abs(np.asarray(found[start][1]) - row[f"{name}_std"]).max() < 2e-3
            )
        np.testing.assert_allclose(
            row["text"], pipe.encode_text([triplet.instruction])[0], atol=2e-3
        )


def test_the_loader_prefers_the_one_with_embeddings_and_does_without(cached):
    data, model = cached
    folder = open_pipeline_folder(model)
    with_text, without = encode_latents.latent_cache_keys(folder, CUT, text=True)
    assert (without,) == encode_latents.latent_cache_keys(folder, CUT, text=False)
    for keys, has in (
        ((with_text, without), True),
        ((without,), False),
        (("nothing", without), False),
    ):
        with Loader(
            CUT, (str(data),), "edit", lambda text: np.zeros(3, np.int32), seed=0, cache=keys
        ) as loader:
            batch = next(loader)[0]
        assert (
            ("text" in batch) == has
            and batch["target_mean"].shape == (4, 2, 8, 8, 4)
            and batch["tokens"].shape == (4, 3)
        )
    with Loader(
        CUT,
        (str(data),),
        "caption",
        lambda text: np.array([len(text)], np.int32),
        seed=0,
        cache=(without,),
    ) as loader:
        assert {"target_mean", "target_std", "tokens", "serial"} == next(loader)[0].keys()


def test_another_model_cut_or_text_encoder_is_another_cache(cached, tiny, tmp_path):
    data, model = cached
    folder = open_pipeline_folder(model)
    for change in (dict(frames=3), dict(size=24), dict(stride=2), dict(crop=0.9), dict(flip=0.5)):
        assert not set(
            encode_latents.latent_cache_keys(folder, dataclasses.replace(CUT, **change), True)
        ) & set(encode_latents.latent_cache_keys(folder, CUT, True))
    assert encode_latents.latent_cache_keys(
        folder, dataclasses.replace(CUT, batch=8, images=0.5), True
    ) == encode_latents.latent_cache_keys(folder, CUT, True)
    for part, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        other = tmp_path / part
        shutil.copytree(model, other)
        file = other / part / f"{name}.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        ours, theirs = (
            encode_latents.latent_cache_keys(folder, CUT, True),
            encode_latents.latent_cache_keys(open_pipeline_folder(other), CUT, True),
        )
        assert ours[0] != theirs[0] and (ours[1] == theirs[1]) == (part == "text_encoder")
        with pytest.raises(UserError, match="is not there; run prepare with --cache-for"):
            open_cache(data, theirs[:1], "train")


def test_a_cache_that_is_not_finished_is_not_read(cached, tmp_path):
    data, model = cached
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    keys = encode_latents.latent_cache_keys(open_pipeline_folder(model), CUT, text=False)
    (copy / "cache" / keys[0] / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        open_cache(copy, keys, "train")
    prepare.run(
        prepare.PrepareArgs(
            data=str(copy), cache_for=str(model), size=16, frames=2, cache_text=False
        )
    )
    assert np.array_equal(
        open_cache(copy, keys, "train").row(0, 0)["source_mean"],
        open_cache(data, keys, "train").row(0, 0)["source_mean"],
    )
    assert jnp.isfinite(open_cache(copy, keys, "train").row(0, 0)["source_std"]).all()
