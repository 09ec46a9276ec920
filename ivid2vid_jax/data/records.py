"""Items of a reader to the records of a dataset, and their division into splits."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from ivid2vid_jax.data.dataset import to_record
from ivid2vid_jax.data.shards import BadItem
from ivid2vid_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class RecordMaker:
    """Items to records, or to why there is none; travels to worker processes."""

    reader: object
    codec: str

    def __call__(self, items: Sequence) -> Iterator:
        for item in items:
            try:
                triplet = self.reader.read(item)
            except UserError as error:
                yield BadItem(item.id, item.where, str(error))
            except Exception as error:  # a file can break a decoder in ways of its own: it is named and counted against the limit
                yield BadItem(item.id, item.where, f"{type(error).__name__}: {error}")
            else:
                yield to_record(triplet, self.codec)


def split_by_origin(items: Sequence, validation: float) -> dict[str, list]:
    """Items by split. Which go to validation depends on their origins alone, so instructions on one clip stay together; at least one origin
    does and one does not, where there are two.
    """
    scores = [
        int.from_bytes(hashlib.sha256(item.origin.encode()).digest()[:8], "big") / 2**64
        for item in items
    ]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    chosen = [
        validation > 0 and (score < validation or score == low) and score != high
        for score in scores
    ]
    parts = {
        name: [item for item, each in zip(items, chosen, strict=True) if each == wanted]
        for name, wanted in (("train", False), ("validation", True))
    }
    return {split: part for split, part in parts.items() if part}
