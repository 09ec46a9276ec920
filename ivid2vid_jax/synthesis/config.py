"""The data engine's config: `SynthesisConfig()` makes triplets of the shapes world; a recipe file says `config = SynthesisConfig(...)`."""

import dataclasses
from operator import attrgetter
from pathlib import Path
from typing import Literal

from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.chat import ChatConfig
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.utils.errors import UserError, check_types, parse_shard

STAGES = ("clips", "captions", "instructions", "edits", "scores", "write")
OWN = "shapes"  # the procedural world, with captions and instructions of its own
TRUTH = "truth"  # the editor that knows
LIMITS = {
    "count": (1, 10**9),
    "per_clip": (1, 64),
    "samples": (1, 64),
    "seed": (0, 2**32 - 1),
    "validation": (0, 0.9),
    "clips.frames": (1, 10**4),
    "clips.size": (8, 8192),
    "clips.fps": (0.1, 1000),
    "clips.per_video": (1, 10**6),
    "captions.beams": (1, 100),
    "captions.batch": (1, 10**4),
    "chat.timeout": (0.1, 10**5),
    "chat.retries": (0, 1000),
    "chat.per_minute": (0.01, 10**9),
    "chat.concurrency": (1, 1000),
    "chat.max_tokens": (1, 10**6),
    "shared_noise.text_scale": (0, 1000),
    "tune_a_video.text_scale": (0, 1000),
    "tune_a_video.steps": (0, 10**6),
    "filter.keep": (1, 10**6),
}


RENAMED = {"clips.alike": "clips.near_duplicate_bits"}  # options by their names in 0.1 -> today's


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
    samples: int = 1  # edits of one instruction, each with its own seed; the filter keeps the best filter.keep of them
    base: str = (
        "shapes-base"  # the text-to-image model that edits clips: of the hub, a folder, or embedded
    )
    editor: Literal["shared_noise", "tune_a_video", "truth"] = (
        "shared_noise"  # truth: the shapes world's own edits, to measure the others against
    )
    clips: ClipsConfig = ClipsConfig(frames=8, size=64, least=64)
    captions: CaptionsConfig = CaptionsConfig(source=OWN)
    chat: ChatConfig = ChatConfig()
    shared_noise: SharedNoiseConfig = SharedNoiseConfig()
    tune_a_video: TuneAVideoConfig = TuneAVideoConfig()
    filter: FilterConfig = FilterConfig(model="shapes-clip")
    validation: float = 0.02  # share of clips whose triplets go into the split "validation"
    codec: Literal["npy", "mp4"] = (
        "npy"  # how the dataset's clips are stored: exact, or mp4, a tenth of the space
    )
    licence: str = ""  # of the videos, SPDX; it goes into every triplet
    shard: str = "0/1"  # "I/N": this process does part I of N of each stage; "auto": by jax.distributed, one part a process, which wait for each other after each stage
    devices: int | None = None  # that edit clips, each its own (None: all of this process)
    estimate: bool = (
        False  # print what is left to do, its chip-hours and the chat's price, and stop
    )

    def check(self) -> None:
        """UserError that names a value of another type or out of its range."""
        check_types(self)
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            raise UserError(f"--stages {' '.join(unknown)}: choose from {', '.join(STAGES)}")
        for name, (low, high) in LIMITS.items():
            value = attrgetter(name)(self)
            if not low <= value <= high:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} must be between {low:g} and {high:g}"
                )
        for name, stage in (
            ("captions.source", self.captions.source),
            ("instructions", self.instructions),
        ):
            if stage == OWN and self.videos != OWN:
                raise UserError(
                    f"--{name} {OWN}: only --videos {OWN} comes with its own; choose another for {self.videos}"
                )
        if self.editor == TRUTH and not self.videos == self.instructions == OWN:
            raise UserError(
                f"--editor {TRUTH}: the true edits are known for --videos {OWN} with --instructions {OWN} alone"
            )
        if self.samples > 1 and (self.editor != "shared_noise" or self.shared_noise.inversion):
            why = "edits from a clip's own noise, and true ones, are the same for every seed"
            raise UserError(
                f"--samples {self.samples}: {why}; only --editor shared_noise with --shared-noise.inversion 0 draws others"
            )
        self.part()

    def part(self) -> tuple[int, int]:
        """(index, count) of --shard."""
        if self.shard == "auto":
            import jax

            return jax.process_index(), jax.process_count()
        return parse_shard(self.shard)
