"""The largest inputs that the app accepts."""

import dataclasses

from ivid2vid_jax.errors import UserError

MAX_INSTRUCTION_LENGTH = 500  # characters


@dataclasses.dataclass(frozen=True)
class AppLimits:
    """The largest accepted values. Memory holds the latents of a whole clip, but not its pixels."""

    seconds: float = 20.0  # length of a clip
    frames: int = 600  # frames of a clip
    side: int = 2048  # pixels of a frame's longer side
    megabytes: int = 100  # size of an uploaded file
    steps: int = 100  # sampler steps
    waiting: int = 8  # edits in the queue; further ones are rejected

    def check(self) -> None:
        """Raises UserError for a limit that is not positive."""
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(
                    f"--limits.{field.name} {getattr(self, field.name)} must be above 0"
                )
