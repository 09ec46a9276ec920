"""Settings of the training loader. In a module of their own, so that reading a config is cheap."""

import dataclasses

from ivid2vid_jax.data import shapes
from ivid2vid_jax.errors import UserError

# field -> (minimum, maximum)
LIMITS = {
    "batch": (1, 2**20),
    "frames": (1, 1024),
    "size": (8, 8192),
    "images": (0, 1),
    "stride": (1, 1024),
    "crop": (0.01, 1),
    "flip": (0, 1),
    "pan": (0, 1),
    "workers": (0, 1024),
    "threads": (0, 1024),
    "limit_bad": (0, 2**31),
}


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a training batch contains and how it is read."""

    # clips per optimiser step, over all processes
    batch: int = 16
    # frames of a training clip
    frames: int = 8
    # height and width of a training clip in pixels
    size: int = 64
    # clip datasets: share of the steps that train on single frames, a random one of each pair
    images: float = 0.0
    # sampling weight of each --data, one number per dataset; () = equal weights
    weights: tuple[float, ...] = ()
    # largest step between two frames; sampled from 1..stride, as far as the clip is long enough
    stride: int = 1
    # smallest random square crop, as a share of the shorter side; 1 = centre crop
    crop: float = 1.0
    # probability of mirroring a clip; never if instruction or captions mention left or right
    flip: float = 0.0
    # image datasets: share of the steps that turn image pairs into moving clips by panning both
    pan: float = 0.0
    # read the latents and text embeddings of `prepare --cache-for` instead of pixels
    cached: bool = False
    # decoding processes; 0 = threads of the training process
    workers: int = 0
    # decoding threads of each process
    threads: int = 2
    # damaged records that are replaced by the next good one before training stops
    limit_bad: int = 100
    # shapes world: edit kinds to sample; () = all kinds of the world
    kinds: tuple[str, ...] = ()
    # shapes world: indices of the phrasings of instructions to sample; () = all
    phrasings: tuple[int, ...] = ()

    def check(self, prefix: str = "--loader.") -> None:
        """Raises UserError for a value out of range, an unknown kind or an unknown phrasing.

        prefix: of the options' names in errors.
        """
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = prefix + name.replace("_", "-")
                raise UserError(f"{option} {value} must be between {low} and {high}")
        if self.size % 8:
            raise UserError(f"{prefix}size {self.size} must be a multiple of 8 pixels")
        if unknown := [kind for kind in self.kinds if kind not in shapes.ALL_KINDS]:
            known = ", ".join(shapes.ALL_KINDS)
            raise UserError(f"{prefix}kinds {unknown} are unknown: choose from {known}")
        for kind in self.kinds or shapes.KINDS:
            shapes.allowed_phrasings(kind, self.phrasings)
