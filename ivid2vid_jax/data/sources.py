"""Sources of triplets by name: procedural worlds, prepared datasets and their latent caches."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError

if TYPE_CHECKING:
    from ivid2vid_jax.data.latent_cache import Cache

MAX_RECORDS_TRIED = 16  # records that are tried in a row until one is not damaged


class TripletSource(Protocol):
    """Triplets by index."""

    def __len__(self) -> int:
        """Number of triplets."""

    def __getitem__(self, index: int) -> Triplet:
        """Reads a triplet; UserError if it is damaged."""


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """A procedural world as a source of 2**32 triplets."""

    world: str
    config: LoaderConfig
    seed: int
    split: str

    def __len__(self) -> int:
        return 2**32

    def __getitem__(self, index: int) -> Triplet:
        spec = shapes.sample_spec(
            self.seed,
            index,
            self.split,
            self.config.kinds,
            self.config.size,
            self.config.frames,
            self.world,
            self.config.phrasings,
        )
        return shapes.triplet(spec)


def open_source(name: str, config: LoaderConfig, seed: int, split: str) -> TripletSource:
    """Opens a procedural world or a folder of `prepare`; UserError if it is neither, or empty."""
    if name in shapes.WORLDS:
        if split not in shapes.SPLITS:
            known = ", ".join(shapes.SPLITS)
            raise UserError(f"split {split!r} of the shapes world is none of {known}")
        return ShapesSource(name, config, seed, split)
    if not Path(name).expanduser().is_dir():
        raise UserError(
            f"data {name!r} is neither a procedural world ({', '.join(shapes.WORLDS)}) "
            "nor a folder; name one that the prepare command wrote"
        )
    # Imported late: it takes seconds, and the shapes worlds do not need it.
    from ivid2vid_jax.data.dataset import open_dataset

    source = open_dataset(name, split)
    if not len(source):
        raise UserError(
            f"data {name!r}: its split {split!r} holds no records; "
            "choose another split, or prepare the data again"
        )
    return source


def held_out_split(name: str) -> str:
    """Name of the split of a dataset or a procedural world that training never sees."""
    return "eval" if name in shapes.WORLDS else "validation"


def open_latents(name: str, keys: tuple[str, ...], split: str) -> "Cache":
    """Opens the latent cache of a prepared dataset; UserError if there is none."""
    if name in shapes.WORLDS:
        raise UserError(
            f"the endless world {name!r} has no latent cache: "
            f"prepare a dataset of it first (prepare --data {name})"
        )
    from ivid2vid_jax.data.latent_cache import open_cache

    return open_cache(Path(name), keys, split)


def has_image_pairs(name: str, source: TripletSource) -> bool:
    """Whether a source holds image pairs instead of clips, by its first readable record."""
    tried = min(MAX_RECORDS_TRIED, len(source))
    reason: UserError | None = None
    for index in range(tried):
        try:
            return len(source[index].source) == 1
        except UserError as error:
            reason = error
    raise UserError(
        f"data {name!r}: none of its first {tried} records can be read; the last: {reason}; "
        "prepare the data again"
    )
