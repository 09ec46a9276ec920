"""Training examples: the rows of batches, each a pure function of its position in a stream."""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from ivid2vid_jax.data import augment
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.sample_schedule import SampleSchedule
from ivid2vid_jax.data.sources import MAX_RECORDS_TRIED, TripletSource
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError

if TYPE_CHECKING:
    from ivid2vid_jax.data.latent_cache import Cache

VIEWS = ("edit", "caption", "pixels")
# Third number of an example's seed; sample_schedule.py uses another, the shapes world has only two.
EXAMPLE_RNG = 1
LATENTS = ("source_mean", "source_std", "edited_mean", "edited_std")

Tokenize = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleStream:
    """The clips or the images of one dataset in an endless order. Sent to worker processes.

    Attributes:
        data: name of the dataset, for messages.
        source: its triplets by index.
        order: position -> index, a new permutation in each epoch; None = index is position.
        frames: of an example.
        image_pairs: whether the dataset consists of image pairs.
        view: what an example contains, see `Loader`.
        tokenize: text -> int32 [K].
        seed: of the training run.
        config: the loader's.
        cache: latents of the same triplets, to be read instead of pixels.
    """

    data: str
    source: TripletSource
    order: grain.MapDataset | None
    frames: int
    image_pairs: bool
    view: str
    tokenize: Tokenize | None
    seed: int
    config: LoaderConfig
    cache: "Cache | None" = None

    def example(self, position: int) -> dict[str, Any]:
        """Returns one row of a batch.

        A damaged record is replaced by the next good one: then "bad" is a JSON list of (name,
        reason) of the records that were skipped, otherwise it is empty.
        """
        first = position if self.order is None else self.order[position]
        bad: list[tuple[str, str]] = []
        for index in range(first, first + MAX_RECORDS_TRIED):
            index %= len(self.source)
            rng = np.random.default_rng([self.seed, position, EXAMPLE_RNG])
            try:
                row = self.read(index, rng)
            except UserError as error:
                bad.append((f"{self.data}[{index}]", str(error)))
            else:
                row["serial"] = np.uint32(position % 2**32)
                row["bad"] = json.dumps(bad) if bad else ""
                return row
        name, reason = bad[0]
        raise UserError(
            f"{name} and the {MAX_RECORDS_TRIED - 1} records after it cannot be used; "
            f"the first: {reason}; prepare the data again"
        )

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The row of a record, from its pixels or from the cache."""
        if self.cache is None:
            return self.make_row(self.source[index], rng)
        return self.cached_row(self.cache, index, rng)

    def make_row(self, record: Triplet, rng: np.random.Generator) -> dict[str, Any]:
        """Crops a record's clips and tokenises its text."""
        self.check(record)
        config = self.config
        texts = (record.instruction, record.source_caption, record.edited_caption)
        flip = 0.0 if augment.mentions_side(*texts) else config.flip
        crop = augment.sample_crop(
            rng, record.source.shape, self.frames, config.stride, config.crop, flip
        )
        if self.view == "edit":
            return {
                "source": augment.apply_crop(record.source, crop, config.size),
                "edited": augment.apply_crop(record.edited, crop, config.size),
                "tokens": self.tokens(record.instruction),
            }
        sides = (
            (record.source, record.source_caption),
            (record.edited, record.edited_caption),
        )
        clip, caption = sides[rng.integers(2)]
        pixels = {"clip": augment.apply_crop(clip, crop, config.size)}
        return pixels if self.view == "pixels" else pixels | {"tokens": self.tokens(caption)}

    def cached_row(self, cache: "Cache", index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads a row from the cache.

        Posteriors are float16 [T, h, w, C], named as the trainer expects them. A stream of images
        takes a random frame of them.
        """
        record = cache.row(index, int(rng.integers(cache.augmentations)))
        start = int(rng.integers(len(record["source_mean"]) - self.frames + 1))
        latents = {name: record[name][start : start + self.frames] for name in LATENTS}
        if self.view == "edit":
            row = {
                "target_mean": latents["edited_mean"],
                "target_std": latents["edited_std"],
                "source_mean": latents["source_mean"],
                "tokens": self.tokens(record["instruction"]),
            }
            return row | ({"text": record["text"]} if "text" in record else {})
        side = ("source", "edited")[rng.integers(2)]
        return {
            "target_mean": latents[f"{side}_mean"],
            "target_std": latents[f"{side}_std"],
            "tokens": self.tokens(record[f"{side}_caption"]),
        }

    def tokens(self, text: str) -> np.ndarray:
        """Tokenises a text, int32 [K]."""
        assert self.tokenize is not None
        return np.asarray(self.tokenize(text), np.int32)

    def check(self, record: Triplet) -> None:
        """Raises UserError for a record that no training clip can be cropped from."""
        shape, edited = record.source.shape, record.edited.shape
        if shape != edited:
            raise UserError(f"record {record.id}: its clips differ in shape, {shape} and {edited}")
        if shape[0] < self.frames and not (self.image_pairs and shape[0] == 1):
            raise UserError(
                f"record {record.id}: has {shape[0]} frames, fewer than the {self.frames} of a "
                "training clip; lower frames"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleSequence:
    """All rows of all batches by number, from the schedule's origin on.

    This is what grain divides among processes, batches and reads ahead.
    """

    schedule: SampleSchedule
    streams: tuple[ExampleStream, ...]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, row = divmod(index, self.schedule.batch)
        stream, position = self.schedule.take(self.schedule.origin + step)
        return self.streams[stream].example(position + row)
