"""The data engine's config: `SynthesisConfig()` makes triplets of the shapes world; a recipe file says `config = SynthesisConfig(...)`."""

import dataclasses
from pathlib import Path
from typing import Literal

from ivid2vid_jax.errors import UserError, check_types, shard_of
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.chat import ChatConfig
from ivid2vid_jax.synthesis.clips import ClipsConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.filter import FilterConfig

STAGES = ("clips", "captions", "instructions", "edits", "scores", "write")
OWN = "shapes"  # the procedural world, with captions and instructions of its own
TRUTH = "truth"  # the editor that knows


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """All that is made comes to stand in `output`: clips, a manifest of every stage, edits, the dataset, and a page to look at."""

    videos: str = OWN  # a folder of videos, or "shapes"
    output: Path = Path("data/synthesised")
    stages: tuple[str, ...] = STAGES  # of these, in this order
    count: int = 24  # shapes: clips
    seed: int = 0  # of everything that is drawn
    instructions: str = OWN  # "chat", "rules", a file in InstructPix2Pix's format, or "shapes"
    per_clip: int = 2  # instructions asked for
    base: str = "shapes-base"  # the text-to-image model that edits clips: of the hub, a folder, or embedded
    editor: Literal["shared_noise", "tune_a_video", "truth"] = "shared_noise"  # truth: the shapes world's own edits, to measure the others against
    clips: ClipsConfig = ClipsConfig(frames=8, size=64, least=64)
    captions: CaptionsConfig = CaptionsConfig(source=OWN)
    chat: ChatConfig = ChatConfig()
    shared_noise: SharedNoiseConfig = SharedNoiseConfig()
    tune_a_video: TuneAVideoConfig = TuneAVideoConfig()
    filter: FilterConfig = FilterConfig(model="shapes-clip")
    validation: float = 0.02  # share of clips whose triplets go into the split "validation"
    codec: Literal["npy", "mp4"] = "npy"  # how the dataset's clips are stored: exact, or mp4, a tenth of the space
    licence: str = ""  # of the videos, SPDX; it goes into every triplet
    shard: str = "0/1"  # "I/N": this process does part I of N of each stage; "auto": by jax.distributed, one part a process
    devices: int | None = None  # that edit clips, each its own (None: all of this process)
    estimate: bool = False  # print what is left to do, its chip-hours and the chat's price, and stop

    def check(self) -> None:
        """UserError that names a value of another type or out of its range."""
        check_types(self)
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            raise UserError(f"--stages {' '.join(unknown)}: choose from {', '.join(STAGES)}")
        for name, low, high in (("count", 1, 10**9), ("per_clip", 1, 64), ("seed", 0, 2**32 - 1), ("validation", 0, 0.9)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} must be between {low} and {high}")
        for name, stage in (("captions.source", self.captions.source), ("instructions", self.instructions)):
            if stage == OWN and self.videos != OWN:
                raise UserError(f"--{name} {OWN}: only --videos {OWN} comes with its own; choose another for {self.videos}")
        if self.editor == TRUTH and not self.videos == self.instructions == OWN:
            raise UserError(f"--editor {TRUTH}: the true edits are known for --videos {OWN} with --instructions {OWN} alone")
        if self.clips.frames < 1 or self.clips.size < 8:
            raise UserError(f"--clips.frames {self.clips.frames} must be at least 1, --clips.size {self.clips.size} at least 8")
        self.part()

    def part(self) -> tuple[int, int]:
        """(index, count) of --shard."""
        if self.shard == "auto":
            import jax

            return jax.process_index(), jax.process_count()
        return shard_of(self.shard)
