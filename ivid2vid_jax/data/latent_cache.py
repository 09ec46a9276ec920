"""The latent cache: what the frozen autoencoder and text encoder make of a prepared dataset, so that training need not make it again.

<data>/cache/<key>/ is itself a dataset of shards. The key is a hash of the nets' weights and of how training clips are cut, so a cache is
never used for another model. Each triplet is kept `augmentations` times, cut anew each time. Where the text encoder will be trained too, the
cache goes without its embeddings, and its key without the encoder's weights.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from ivid2vid_jax.data import shards
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import Dataset, from_npy, open_records, to_npy
from ivid2vid_jax.utils.errors import UserError

LATENTS = ("source_mean", "source_std", "edited_mean", "edited_std")
TEXTS = ("id", "instruction", "source_caption", "edited_caption")
CUT = (
    "frames",
    "size",
    "stride",
    "crop",
    "flip",
)  # fields of LoaderConfig that decide what is in a cached clip
AHEAD = 64  # triplets that are encoded together


def cache_key(marks: dict[str, str], config: LoaderConfig) -> str:
    """The cache's folder name. marks: file -> sha256 of the weights of the autoencoder, and of the text encoder if its embeddings are in it."""
    cut = {name: getattr(config, name) for name in CUT}
    return hashlib.sha256(json.dumps([sorted(marks.items()), cut]).encode()).hexdigest()[:16]


def features(text: bool) -> tfds.features.FeaturesDict:
    """Arrays as .npy bytes: posterior mean and std of both clips, float16 [T, h, w, C], and the instruction's embedding, float16 [K, D]."""
    arrays = {name: tfds.features.Scalar(np.bytes_) for name in names(text)}
    return tfds.features.FeaturesDict(arrays | {name: tfds.features.Text() for name in TEXTS})


def names(text: bool) -> tuple[str, ...]:
    """The arrays of a record."""
    return (*LATENTS, "text") if text else LATENTS


@dataclasses.dataclass(frozen=True)
class LatentEncoder:
    """Items (split, index, augmentation) to records. rows: the same -> (triplet, source and edited clip as training cuts them).

    posterior: uint8 [N, H, W, 3] -> mean, std [N, h, w, C]. embed: texts -> [N, K, D]; None leaves it out.
    """

    rows: Callable
    posterior: Callable
    embed: Callable | None

    def __call__(self, items: Sequence) -> Iterator:
        for i in range(0, len(items), AHEAD):
            yield from self.together([self.row(item) for item in items[i : i + AHEAD]])

    def row(self, item):
        try:
            return self.rows(*item)
        except UserError as error:
            return shards.BadItem(str(item), f"triplet {item[1]} of {item[0]}", str(error))

    def together(self, rows: list) -> Iterator:
        good = [row for row in rows if not isinstance(row, shards.BadItem)]
        made = iter(self.encode(good) if good else ())
        for row in rows:
            yield row if isinstance(row, shards.BadItem) else next(made)

    def encode(self, rows: list) -> Iterator[dict]:
        clips = np.stack([[source, edited] for _, source, edited in rows])  # [N, 2, T, H, W, 3]
        mean, std = (
            x.reshape(*clips.shape[:3], *x.shape[1:]).astype(np.float16)
            for x in self.posterior(clips.reshape(-1, *clips.shape[3:]))
        )
        arrays = dict(zip(LATENTS, (mean[:, 0], std[:, 0], mean[:, 1], std[:, 1]), strict=True))
        if self.embed:
            arrays["text"] = self.embed([triplet.instruction for triplet, _, _ in rows]).astype(
                np.float16
            )
        for i, (triplet, _, _) in enumerate(rows):
            yield {name: to_npy(array[i]) for name, array in arrays.items()} | {
                name: getattr(triplet, name) for name in TEXTS
            }


def write_cache(
    data: Path,
    name: str,
    arguments: dict,
    augmentations: int,
    splits: dict[str, int],
    make: LatentEncoder,
    progress,
) -> Path:
    """Writes <data>/cache/<name>, or goes on with it; splits: triplets of each split. Returns its folder."""
    folder = data / "cache" / name
    planned = shards.plan_shards(
        "latents",
        {
            split: [(split, i, k) for i in range(count) for k in range(augmentations)]
            for split, count in splits.items()
        },
        500,
    )
    kinds = features(make.embed is not None)
    with shards.lock_folder(
        folder, arguments | {"augmentations": augmentations, "text": make.embed is not None}
    ):
        if not shards.is_described(folder):
            outcomes = shards.write_shards(folder, planned, kinds, make, progress=progress)
            bad = [each for outcome in outcomes for each in outcome.bad.values()]
            if bad:
                raise UserError(
                    f"{data}: {bad[0].where} cannot be read ({bad[0].reason}); prepare the data again"
                )
            shards.write_metadata(folder, kinds, outcomes, f"Latents of {data.name}.")
    return folder


class Cache:
    """Cached triplets by number: `cache.row(i, augmentation)` -> dict of arrays and texts. It pickles."""

    def __init__(self, records: Dataset, augmentations: int, text: bool):
        self.records, self.augmentations, self.text = records, augmentations, text

    def __len__(self) -> int:
        return len(self.records) // self.augmentations

    def row(self, i: int, augmentation: int) -> dict:
        record = self.records.record(i * self.augmentations + augmentation)
        return {name: from_npy(record[name]) for name in names(self.text)} | {
            name: record[name].decode() for name in TEXTS
        }


def open_cache(data: Path, keys: Sequence[str], split: str) -> Cache:
    """Opens the first of <data>/cache/<keys> that is whole. UserError where none is, with the command that makes one."""
    folders = [Path(data) / "cache" / key for key in keys]
    folder = next((folder for folder in folders if shards.is_described(folder)), None)
    if folder is None:
        state = "is not finished" if any(folder.is_dir() for folder in folders) else "is not there"
        way = "run prepare with --cache-for (or train without --loader.cached)"
        raise UserError(
            f"{folders[0]}: the latent cache for this model and these clips {state}; {way}"
        )
    arguments = json.loads((folder / shards.ARGUMENTS).read_text())
    return Cache(
        open_records(folder, split, features(arguments["text"])),
        arguments["augmentations"],
        arguments["text"],
    )
