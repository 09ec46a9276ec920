"""Encodes a dataset with a frozen autoencoder and text encoder into its latent cache.

The cache's format: `data/latent_cache.py`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ivid2vid_jax.data import latent_cache
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.data.examples import ExampleStream
from ivid2vid_jax.inference.pipeline import Pipeline, load
from ivid2vid_jax.models import AutoencoderKL
from ivid2vid_jax.models.autoencoder import to_pixels
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, file_sha256

CHUNK_PIXELS = 2**19  # maximum number of pixels encoded at once


def cache_fingerprints(folder: PipelineFolder, text: bool) -> dict[str, str]:
    """File -> sha256 of the files that cached latents and, with `text`, embeddings depend on."""
    fingerprints = folder.fingerprint(("vae", "text_encoder") if text else ("vae",))
    if text:
        fingerprints |= {
            f"tokenizer/{file.name}": file_sha256(file)
            for file in sorted(folder.tokenizer.iterdir())
        }
    return fingerprints


def latent_cache_keys(folder: PipelineFolder, config: LoaderConfig, text: bool) -> tuple[str, ...]:
    """Names of the caches that fit a pipeline folder and the loader's cuts, the preferred first.

    text: accept a cache with text embeddings; false if the text encoder is trained.
    """
    fingerprints = cache_fingerprints(folder, text)
    latents = {file: sha256 for file, sha256 in fingerprints.items() if file.startswith("vae/")}
    keys = [latent_cache.cache_key(files, config) for files in (fingerprints, latents)]
    return tuple(dict.fromkeys(keys))


def write_latent_cache(
    data: Path,
    model: str,
    config: LoaderConfig,
    augmentations: int,
    text: bool = True,
    dtype: str = "auto",
) -> Path:
    """Writes the latent cache of a prepared dataset, or completes it after an interruption.

    Args:
        data: the dataset's folder.
        model: the pipeline folder whose autoencoder and text encoder are used.
        config: the loader's cuts (frames, size, crops, ...).
        augmentations: number of random augmentations per triplet.
        text: whether to store text embeddings.
        dtype: compute precision.

    Returns:
        The cache's folder.
    """
    splits = {split: open_dataset(data, split) for split in open_dataset(data).splits}
    pipe = load(model, dtype)
    files = cache_fingerprints(pipe.folder, text)
    arguments = {"model": str(model), "files": files} | {
        name: getattr(config, name) for name in latent_cache.CROP_FIELDS
    }
    counts = {split: len(source) for split, source in splits.items()}
    with Progress("encoding") as progress:
        return latent_cache.write_cache(
            data,
            latent_cache.cache_key(files, config),
            arguments,
            augmentations,
            counts,
            latent_encoder(pipe, str(data), splits, config, text),
            progress,
        )


def latent_encoder(
    pipe: Pipeline, name: str, splits: dict[str, Any], config: LoaderConfig, text: bool
) -> latent_cache.LatentEncoder:
    """The encoder of a dataset's triplets. name: of the dataset. splits: split -> triplets."""
    streams = {
        split: ExampleStream(
            data=name,
            source=source,
            order=None,
            frames=config.frames,
            image_pairs=False,
            view="edit",
            tokenize=lambda text: np.zeros(0, np.int32),  # embeddings are stored instead of tokens
            seed=0,
            config=config,
        )
        for split, source in splits.items()
    }

    def rows(split: str, index: int, augmentation: int):
        triplet = splits[split][index]
        row = streams[split].make_row(triplet, np.random.default_rng([index, augmentation, 2]))
        return triplet, row["source"], row["edited"]

    def embed(texts: list[str]) -> np.ndarray:
        return np.asarray(pipe.encode_text(texts), np.float32)

    return latent_cache.LatentEncoder(rows, posterior_encoder(pipe), embed if text else None)


def posterior_encoder(pipe: Pipeline) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function uint8 [N, H, W, 3] -> mean, std: float32 [N, h, w, C], numpy.

    It works in chunks, padded to powers of two so that few programs are compiled.
    """
    vae, params = AutoencoderKL(pipe.folder.vae, pipe.dtype), pipe.params["vae"]
    vae_encode = runtime.jit(
        lambda params, pixels: vae.apply(
            {"params": params}, to_pixels(pixels, pipe.dtype), method=vae.encode
        )
    )

    def encode(frames):
        height, width = frames.shape[1:3]
        chunk_size = 2 ** int(math.log2(max(1, CHUNK_PIXELS // (height * width))))
        means, stds = [], []
        for i in range(0, len(frames), chunk_size):
            chunk = frames[i : i + chunk_size]
            padded = np.zeros((2 ** math.ceil(math.log2(len(chunk))), *chunk.shape[1:]), np.uint8)
            padded[: len(chunk)] = chunk
            mean, std = jax.device_get(tuple(vae_encode(params, padded)))
            means.append(mean[: len(chunk)])
            stds.append(std[: len(chunk)])
        return np.concatenate(means), np.concatenate(stds)

    return encode
