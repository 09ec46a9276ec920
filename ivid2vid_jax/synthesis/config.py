"""The data engine's config.

`SynthesisConfig()` makes triplets of the shapes world; a recipe file defines
`config = SynthesisConfig(...)`.
"""

import dataclasses
from operator import attrgetter
from pathlib import Path
from typing import Literal

from ivid2vid_jax.errors import UserError, check_types, parse_shard
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.chat import ChatConfig
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.filter import FilterConfig

STAGES = ("clips", "captions", "instructions", "edits", "scores", "write")
SHAPES = "shapes"  # --videos, --captions.source, --instructions: those of the shapes world
TRUTH = "truth"  # --editor: the shapes world's own edits

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


RENAMED = {"clips.alike": "clips.near_duplicate_bits"}  # options: name in 0.1 -> name today


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """Makes training triplets from unedited clips.

    All results go to `output`: clips, a manifest per stage, edits, the dataset and an HTML report.
    """

    videos: str = SHAPES  # a folder of videos, or "shapes" for the shapes world
    output: Path = Path("data/synthesised")  # folder of all results
    stages: tuple[str, ...] = STAGES  # stages to run; always in this order
    count: int = 24  # number of clips (shapes world)
    seed: int = 0  # seed of all random draws
    # "chat", "rules", a JSON-lines file in InstructPix2Pix's format, or "shapes"
    instructions: str = SHAPES
    per_clip: int = 2  # instructions to ask for per clip
    # edits per instruction, each with its own seed; the filter keeps the best filter.keep of them
    samples: int = 1
    # text-to-image model that edits the clips: hub name, folder, or embedded
    base: str = "shapes-base"
    # truth: the shapes world's own edits, as a reference for the other editors
    editor: Literal["shared_noise", "tune_a_video", "truth"] = "shared_noise"

    clips: ClipsConfig = ClipsConfig(frames=8, size=64, least=64)
    captions: CaptionsConfig = CaptionsConfig(source=SHAPES)
    chat: ChatConfig = ChatConfig()
    shared_noise: SharedNoiseConfig = SharedNoiseConfig()
    tune_a_video: TuneAVideoConfig = TuneAVideoConfig()
    filter: FilterConfig = FilterConfig(model="shapes-clip")

    validation: float = 0.02  # share of clips whose triplets go to the split "validation"
    # storage of the dataset's clips: npy is lossless, mp4 takes a tenth of the space
    codec: Literal["npy", "mp4"] = "npy"
    licence: str = ""  # SPDX name of the videos' licence, stored in every triplet
    # "I/N": this process does part I of N of every stage. "auto": one part per process of
    # jax.distributed; they wait for each other after every stage
    shard: str = "0/1"
    # devices that edit clips, one clip each (None: all of this process)
    devices: int | None = None
    # print the remaining work, its chip-hours and the chat model's price, and exit
    estimate: bool = False

    def check(self) -> None:
        """Raises UserError for a value of the wrong type or out of range, naming it."""
        check_types(self)
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            raise UserError(f"--stages {' '.join(unknown)}: choose from {', '.join(STAGES)}")
        for name, (low, high) in LIMITS.items():
            value = attrgetter(name)(self)
            if not low <= value <= high:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {value} must be between {low:g} and {high:g}")
        self.check_shapes_only()
        if self.samples > 1 and (self.editor != "shared_noise" or self.shared_noise.inversion):
            raise UserError(
                f"--samples {self.samples}: true edits and edits from a clip's own noise are the "
                "same for every seed; only --editor shared_noise with --shared-noise.inversion 0 "
                "draws different ones"
            )
        self.shard_part()

    def check_shapes_only(self) -> None:
        """Raises UserError for options that need --videos shapes, if other videos are given."""
        for name, value in (
            ("captions.source", self.captions.source),
            ("instructions", self.instructions),
        ):
            if value == SHAPES and self.videos != SHAPES:
                raise UserError(
                    f"--{name} {SHAPES}: only --videos {SHAPES} comes with its own; "
                    f"choose another for {self.videos}"
                )
        if self.editor == TRUTH and not self.videos == self.instructions == SHAPES:
            raise UserError(
                f"--editor {TRUTH}: true edits are known only for --videos {SHAPES} with "
                f"--instructions {SHAPES}"
            )

    def shard_part(self) -> tuple[int, int]:
        """(index, count) of --shard."""
        if self.shard == "auto":
            import jax

            return jax.process_index(), jax.process_count()
        return parse_shard(self.shard)
