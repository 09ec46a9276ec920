"""Encodes a prepared dataset with a model's frozen autoencoder and text encoder, once, into its latent cache (`data/latent_cache.py`)."""

import logging
import math
from pathlib import Path

import jax
import numpy as np

from ivid2vid_jax.data import latent_cache
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.data.loader import ExampleStream
from ivid2vid_jax.inference.pipeline import Pipeline, load
from ivid2vid_jax.models import AutoencoderKL
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.training.objectives import to_pixels
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, file_sha256

log = logging.getLogger(__name__)

CHUNK_PIXELS = 2**19  # encoded at once


def cache_fingerprints(folder: PipelineFolder, text: bool) -> dict[str, str]:
    """sha256 of every file that cached latents, and embeddings if there are to be any, hang on."""
    found = folder.fingerprint(("vae", "text_encoder") if text else ("vae",))
    return found | (
        {f"tokenizer/{file.name}": file_sha256(file) for file in sorted(folder.tokenizer.iterdir())}
        if text
        else {}
    )


def latent_cache_keys(folder: PipelineFolder, config: LoaderConfig, text: bool) -> tuple[str, ...]:
    """The caches that serve a training from a model's folder: with embeddings, unless the text encoder is trained, or without."""
    found = cache_fingerprints(folder, text)
    latents = {file: mark for file, mark in found.items() if file.startswith("vae/")}
    return tuple(dict.fromkeys(latent_cache.cache_key(each, config) for each in (found, latents)))


def write_latent_cache(
    data: Path,
    model: str,
    config: LoaderConfig,
    augmentations: int,
    text: bool = True,
    dtype: str = "auto",
) -> Path:
    """Writes or completes the cache of a prepared dataset for a model and the loader's cuts; returns its folder. A stopped run goes on.

    text: with the text encoder's embeddings.
    """
    splits = {split: open_dataset(data, split) for split in open_dataset(data).splits}
    pipe = load(model, dtype)
    streams = {
        split: ExampleStream(
            str(data), source, None, config.frames, False, "edit", lambda text: (), 0, config
        )
        for split, source in splits.items()
    }

    def rows(split: str, index: int, augmentation: int):
        triplet = splits[split][index]
        row = streams[split].row(triplet, np.random.default_rng([index, augmentation, 2]))
        return triplet, row["source"], row["edited"]

    encoding = latent_cache.LatentEncoder(
        rows,
        posterior_encoder(pipe),
        (lambda texts: np.asarray(pipe.encode_text(texts), np.float32)) if text else None,
    )
    files = cache_fingerprints(pipe.folder, text)
    arguments = {"model": str(model), "files": files} | {
        name: getattr(config, name) for name in latent_cache.CUT
    }
    counts = {split: len(source) for split, source in splits.items()}
    with Progress("encoding") as progress:
        return latent_cache.write_cache(
            data,
            latent_cache.cache_key(files, config),
            arguments,
            augmentations,
            counts,
            encoding,
            progress,
        )


def posterior_encoder(pipe: Pipeline):
    """uint8 [N, H, W, 3] -> mean, std [N, h, w, C], numpy float32; in chunks filled up to powers of two, so that few programs serve all."""
    vae, params = AutoencoderKL(pipe.folder.vae, pipe.dtype), pipe.params["vae"]
    encode = runtime.jit(
        lambda params, pixels: vae.apply(
            {"params": params}, to_pixels(pixels, pipe.dtype), method=vae.encode
        )
    )

    def run(frames):
        count = 2 ** int(math.log2(max(1, CHUNK_PIXELS // (frames.shape[1] * frames.shape[2]))))
        parts = []
        for i in range(0, len(frames), count):
            chunk = frames[i : i + count]
            full = 2 ** math.ceil(math.log2(len(chunk)))
            filled = np.concatenate(
                [chunk, np.zeros((full - len(chunk), *chunk.shape[1:]), np.uint8)]
            )
            parts.append(
                jax.tree.map(
                    lambda x, used=len(chunk): x[:used],
                    jax.device_get(tuple(encode(params, filled))),
                )
            )
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    return run
