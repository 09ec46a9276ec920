"""Turns the items of a reader into records of a dataset, and divides items into splits."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ivid2vid_jax.data.dataset import to_record
from ivid2vid_jax.data.readers import Item
from ivid2vid_jax.data.shard_writer import BadItem
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError

AnyItem = TypeVar("AnyItem", bound=Item)


class ItemReader(Protocol):
    """The part of a `readers.Reader` that a RecordMaker needs."""

    def read(self, item: Any) -> Triplet:
        """Reads an item; UserError if that fails."""


@dataclasses.dataclass(frozen=True)
class RecordMaker:
    """Turns items into records; can be pickled.

    Attributes:
        reader: reads the items.
        codec: of the clips, see `dataset.encode_clip`.
    """

    reader: ItemReader
    codec: str

    def __call__(self, items: Sequence[Item]) -> Iterator[dict[str, Any] | BadItem]:
        """Yields the record of each item, or why there is none."""
        for item in items:
            try:
                triplet = self.reader.read(item)
            except UserError as error:
                yield BadItem(item.id, item.where, str(error))
            except Exception as error:  # decoders raise all sorts of errors for damaged files
                yield BadItem(item.id, item.where, f"{type(error).__name__}: {error}")
            else:
                yield to_record(triplet, self.codec)


def split_by_origin(items: Sequence[AnyItem], validation: float) -> dict[str, list[AnyItem]]:
    """Divides items into the splits "train" and "validation"; empty splits are left out.

    An item's split depends on a hash of its origin, so that all instructions for one clip are in
    the same split. If there are two origins or more, both splits have one at least.

    Args:
        items: the items.
        validation: share of the origins that go into "validation".
    """
    scores = [hash_to_unit(item.origin) for item in items]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    splits: dict[str, list[AnyItem]] = {"train": [], "validation": []}
    for item, score in zip(items, scores, strict=True):
        held_out = validation > 0 and (score < validation or score == low) and score != high
        splits["validation" if held_out else "train"].append(item)
    return {split: part for split, part in splits.items() if part}


def hash_to_unit(text: str) -> float:
    """A number in [0, 1] that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
