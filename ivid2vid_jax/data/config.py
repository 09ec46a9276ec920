"""What a training batch holds and how it is made. Apart from the loader, so that configs are read without grain."""

import dataclasses

from ivid2vid_jax.data import shapes
from ivid2vid_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a batch holds and how it is made."""

    batch: int = 16  # clips of one optimiser step, over all processes
    frames: int = 8  # frames of a training clip
    size: int = 64  # pixels of a side
    images: float = 0.0  # share of a clip dataset's steps that train on one-frame clips, a random frame of each pair
    weights: tuple[
        float, ...
    ] = ()  # how often each of --data is drawn, one number for each; () = equally often
    stride: int = 1  # most frames from one taken to the next, drawn from 1..stride as far as the clip is long enough
    crop: float = 1.0  # least share of the shorter side that a random square crop keeps; 1 = the middle square
    flip: float = (
        0.0  # chance of a mirrored clip; never where instruction or captions speak of left or right
    )
    pan: float = 0.0  # share of an image dataset's steps in which the pairs become moving clips: the window travels, alike in both
    cached: bool = (
        False  # read latents and embeddings that `prepare --cache-for` made, instead of pixels
    )
    workers: int = 0  # processes that decode; 0 = threads of this one
    threads: int = 2  # threads of each of these processes, a batch each
    limit_bad: int = 100  # damaged records that may be substituted before the run stops
    kinds: tuple[str, ...] = ()  # edit kinds that the shapes world draws; () = all of the world's
    phrasings: tuple[
        int, ...
    ] = ()  # numbers of the sentences (shapes_words.PHRASINGS) that it says them in; () = all

    def check(self) -> None:
        """Raises UserError that names a value out of its range."""
        for name, low, high in (
            ("batch", 1, 2**20),
            ("frames", 1, 1024),
            ("size", 8, 8192),
            ("images", 0, 1),
            ("stride", 1, 1024),
            ("crop", 0.01, 1),
            ("flip", 0, 1),
            ("pan", 0, 1),
            ("workers", 0, 1024),
            ("threads", 0, 1024),
            ("limit_bad", 0, 2**31),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} {value} must be between {low} and {high}")
        if self.size % 8:
            raise UserError(f"size {self.size} must be a multiple of 8 pixels")
        if unknown := [kind for kind in self.kinds if kind not in shapes.ALL_KINDS]:
            raise UserError(
                f"kinds {unknown} are not known to the shapes world: choose from {', '.join(shapes.ALL_KINDS)}"
            )
        for kind in self.kinds or shapes.KINDS:
            shapes.sentences(kind, self.phrasings)
