"""Settings of an edit, and their defaults for a pipeline folder."""

import dataclasses
import difflib
from typing import Any

from ivid2vid_jax.diffusion.samplers import SAMPLERS
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import names
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder

# name, lowest and highest value
RANGES = (
    ("steps", 1, 1000),
    ("size", 1, 8192),
    ("frames", 1, 1024),
    ("seed", 0, 2**32 - 1),
    ("eta", 0, 1),
    ("rescale", 0, 1),
    ("text_scale", 0, 1000),
    ("video_scale", 0, 1000),
    ("shared_noise", 0, 1),
    ("guide_from", 0, 1),
    ("guide_to", 0, 1),
)


def sampler_name(name: str) -> str:
    """A sampler's name here, also for its names elsewhere; UserError for an unknown one."""
    other_names = names.SAMPLERS | names.SCHEDULER_CLASSES
    name = other_names.get(name, name)
    if name in SAMPLERS:
        return name
    near = difflib.get_close_matches(name, [*SAMPLERS, *other_names], 1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}{suggestion}")


@dataclasses.dataclass(frozen=True)
class EditSettings:
    """How to sample an edit.

    None stands for the default: the folder's own value (sampling.json), else the one named here.
    Guidance acts on steps i with guide_from <= i / steps < guide_to; on the others only the fully
    conditioned branch is evaluated, a third of the work.
    """

    steps: int | None = None  # sampler steps; default 50
    text_scale: float | None = None  # guidance towards the instruction; default 7.5
    video_scale: float | None = None  # guidance towards the source clip; default 1.5
    sampler: str | None = None  # one of SAMPLERS, diffusion/samplers.py; default: the folder's
    size: int | None = None  # pixels of the longer side inside the model; default: as trained
    frames: int | None = None  # frames of one window; default: as trained
    seed: int = 0
    shared_noise: float | None = None  # share of noise common to all frames, 0 to 1; default 0
    negative: str = ""  # negative instruction, instead of the empty one
    eta: float = 0.0  # share of fresh noise in ddim steps, 0 to 1
    rescale: float = 0.0  # guidance rescale, 0 to 1
    guide_from: float | None = None  # start of guidance, as a share of the steps; default 0
    guide_to: float | None = None  # end of guidance, as a share of the steps; default 1

    @classmethod
    def from_args(cls, args: Any, **others: Any) -> "EditSettings":
        """Takes the settings from a command's arguments of the same names; `others` go first."""
        fields = [field.name for field in dataclasses.fields(cls)]
        given = {name: getattr(args, name) for name in fields if hasattr(args, name)}
        return cls(**given | others)

    def check(self) -> None:
        """UserError for a value out of its range; None is the default and always right."""
        for name, low, high in RANGES:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and low <= value <= high):
                raise UserError(f"{name} {value} must be between {low} and {high}")
        if self.sampler is not None:
            sampler = sampler_name(self.sampler)
            if self.eta and sampler != "ddim":
                raise UserError(f"eta {self.eta} is for the ddim sampler only, this is {sampler}")

    def resolve(self, folder: PipelineFolder) -> "ResolvedSettings":
        """Replaces every None by its default. Raises UserError for a value out of its range."""
        self.check()
        defaults: dict[str, Any] = {
            "steps": 50,
            "text_scale": 7.5,
            "video_scale": 1.5,
            "frames": folder.unet.num_frames,
            "shared_noise": 0.0,
            "guide_from": 0.0,
            "guide_to": 1.0,
            "sampler": names.SCHEDULER_CLASSES.get(folder.scheduler.get("_class_name", ""), "ddim"),
            "size": (folder.unet.sample_size or 64) * folder.vae.downscale,
        }
        defaults |= {name: value for name, value in folder.sampling.items() if name in defaults}
        given = {name: value for name, value in vars(self).items() if value is not None}
        if "sampler" in given:
            given["sampler"] = sampler_name(given["sampler"])
        settings = ResolvedSettings(**defaults | given)
        settings.check()
        if settings.frames > folder.unet.max_frames:
            raise UserError(
                f"frames {settings.frames} must be at most {folder.unet.max_frames}, the positions "
                "of this net's motion modules"
            )
        return settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedSettings(EditSettings):
    """Edit settings without None, as `EditSettings.resolve` returns them."""

    steps: int
    text_scale: float
    video_scale: float
    sampler: str
    size: int
    frames: int
    shared_noise: float
    guide_from: float
    guide_to: float
