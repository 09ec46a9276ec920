"""The latent cache: a prepared dataset encoded once by the frozen autoencoder and text encoder.

<data>/cache/<key>/ is a dataset of its own. The key is a hash of the networks' weights and of the
settings of training crops, so a cache is never read for another model. Each triplet is stored
`augmentations` times, each time with a new random crop. A cache for training the text encoder has
no text embeddings, and its key does not depend on the text encoder's weights.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ivid2vid_jax.data import shards
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import Dataset, from_npy, open_records, to_npy
from ivid2vid_jax.data.shard_writer import BadItem
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError

LATENTS = ("source_mean", "source_std", "edited_mean", "edited_std")
TEXTS = ("id", "instruction", "source_caption", "edited_caption")
# Fields of LoaderConfig that decide what a cached clip is.
CROP_FIELDS = ("frames", "size", "stride", "crop", "flip")
ENCODE_BATCH = 64  # triplets that are encoded together
RECORDS_PER_SHARD = 500

Item = tuple[str, int, int]  # split, index of the triplet, number of the augmentation
Clips = tuple[Triplet, np.ndarray, np.ndarray]  # triplet, cropped source, cropped edited clip


def cache_key(fingerprints: Mapping[str, str], config: LoaderConfig) -> str:
    """Returns the name of a cache's folder.

    Args:
        fingerprints: file -> sha256 of the weights of the autoencoder, and of the text encoder if
            the cache holds its embeddings.
        config: the settings of training crops.
    """
    crop = {name: getattr(config, name) for name in CROP_FIELDS}
    return hashlib.sha256(json.dumps([sorted(fingerprints.items()), crop]).encode()).hexdigest()[
        :16
    ]


def features(text: bool) -> tfds.features.FeaturesDict:
    """Features of a record; arrays are .npy bytes.

    Posterior mean and std of both clips are float16 [T, h, w, C]; the instruction's embedding is
    float16 [K, D].
    """
    return tfds.features.FeaturesDict(
        {name: tfds.features.Scalar(np.bytes_) for name in array_names(text)}
        | {name: tfds.features.Text() for name in TEXTS}
    )


def array_names(text: bool) -> tuple[str, ...]:
    """Names of a record's arrays, with or without the text embedding."""
    return (*LATENTS, "text") if text else LATENTS


@dataclasses.dataclass(frozen=True)
class LatentEncoder:
    """Encodes items to records of the cache.

    Attributes:
        read_clips: (split, index, augmentation) -> triplet, source and edited clip, both cropped.
        encode_clips: uint8 [N, H, W, 3] -> posterior mean and std [N, h, w, C].
        encode_texts: texts -> embeddings [N, K, D]; None leaves them out.
    """

    read_clips: Callable[[str, int, int], Clips]
    encode_clips: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    encode_texts: Callable[[list[str]], np.ndarray] | None

    def __call__(self, items: Sequence[Item]) -> Iterator[dict[str, Any] | BadItem]:
        """Yields the record of each item, or why there is none."""
        for i in range(0, len(items), ENCODE_BATCH):
            clips = [self.read(item) for item in items[i : i + ENCODE_BATCH]]
            good = [pair for pair in clips if not isinstance(pair, BadItem)]
            records = iter(self.encode(good) if good else ())
            for pair in clips:
                yield pair if isinstance(pair, BadItem) else next(records)

    def read(self, item: Item) -> Clips | BadItem:
        """The cropped clips of an item, or why they cannot be read."""
        split, index, _ = item
        try:
            return self.read_clips(*item)
        except UserError as error:
            return BadItem(str(item), f"triplet {index} of {split}", str(error))

    def encode(self, rows: list[Clips]) -> Iterator[dict[str, Any]]:
        """Yields the records of cropped clips, which all have the same shape."""
        clips = np.stack([[source, edited] for _, source, edited in rows])  # [N, 2, T, H, W, 3]
        mean, std = (
            x.reshape(*clips.shape[:3], *x.shape[1:]).astype(np.float16)
            for x in self.encode_clips(clips.reshape(-1, *clips.shape[3:]))
        )
        arrays = dict(zip(LATENTS, (mean[:, 0], std[:, 0], mean[:, 1], std[:, 1]), strict=True))
        if self.encode_texts:
            instructions = [triplet.instruction for triplet, _, _ in rows]
            arrays["text"] = self.encode_texts(instructions).astype(np.float16)
        for i, (triplet, _, _) in enumerate(rows):
            texts = {name: getattr(triplet, name) for name in TEXTS}
            yield {name: to_npy(array[i]) for name, array in arrays.items()} | texts


def write_cache(
    data: Path,
    name: str,
    arguments: dict,
    augmentations: int,
    splits: dict[str, int],
    encoder: LatentEncoder,
    progress: Callable[[int, int], None] | None,
) -> Path:
    """Writes <data>/cache/<name>, or continues it; returns the folder.

    Args:
        data: folder of the dataset.
        name: the cache's key.
        arguments: what decides the cache's contents; stored and compared when it is continued.
        augmentations: crops of each triplet.
        splits: number of triplets of each split.
        encoder: makes the records.
        progress: called with (records done, records to do).

    Raises:
        UserError: a triplet cannot be read.
    """
    folder = data / "cache" / name
    items = {
        split: [(split, i, k) for i in range(count) for k in range(augmentations)]
        for split, count in splits.items()
    }
    planned = shards.plan_shards("latents", items, RECORDS_PER_SHARD)
    text = encoder.encode_texts is not None
    record_features = features(text)
    arguments = arguments | {"augmentations": augmentations, "text": text}
    with shards.lock_folder(folder, arguments):
        if not shards.is_finished(folder):
            outcomes = shards.write_shards(
                folder, planned, record_features, encoder, progress=progress
            )
            bad = [item for outcome in outcomes for item in outcome.bad.values()]
            if bad:
                raise UserError(
                    f"{data}: {bad[0].where} cannot be read ({bad[0].reason}); "
                    "prepare the data again"
                )
            shards.write_metadata(folder, record_features, outcomes, f"Latents of {data.name}.")
    return folder


class Cache:
    """Cached triplets; `cache.row(i, augmentation)` reads one. Can be pickled."""

    def __init__(self, records: Dataset, augmentations: int, text: bool):
        self.records, self.augmentations, self.text = records, augmentations, text

    def __len__(self) -> int:
        return len(self.records) // self.augmentations

    def row(self, i: int, augmentation: int) -> dict[str, Any]:
        """Arrays and texts of a triplet."""
        record = self.records.record(i * self.augmentations + augmentation)
        arrays = {name: from_npy(record[name]) for name in array_names(self.text)}
        return arrays | {name: record[name].decode() for name in TEXTS}


def open_cache(data: Path, keys: Sequence[str], split: str) -> Cache:
    """Opens the first finished cache <data>/cache/<key> of `keys`; UserError if there is none."""
    folders = [Path(data) / "cache" / key for key in keys]
    folder = next((folder for folder in folders if shards.is_finished(folder)), None)
    if folder is None:
        state = "is not finished" if any(path.is_dir() for path in folders) else "does not exist"
        raise UserError(
            f"{folders[0]}: the latent cache for this model and these clips {state}; "
            "run prepare with --cache-for (or train without --loader.cached)"
        )
    arguments = json.loads((folder / shards.ARGUMENTS).read_text())
    augmentations, text = arguments["augmentations"], arguments["text"]
    return Cache(open_records(folder, split, features(text)), augmentations, text)
