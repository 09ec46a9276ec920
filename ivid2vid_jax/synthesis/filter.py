"""Which synthesised edits are kept: CLIP similarities, as InstructPix2Pix filters its images (arXiv 2211.09800, section 3.1.2).

Frame by frame, features of length 1, means over the frames.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ivid2vid_jax.evaluation.clip_scores import CLIPScores


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Least similarities. Those of InstructPix2Pix for real clips under CLIP ViT-L/14; that between the clips is InsV2V's for video (0.7 for images)."""

    model: str = "openai/clip-vit-large-patch14"  # CLIP: of the hub, a folder, or shapes-clip
    image: float = 0.5  # between source and edited frames
    text: float = 0.2  # of each clip to its caption
    direction: float = 0.2  # of the change of the frames to that of the captions
    consistency: float = 0.0  # between neighbouring edited frames
    keep: int = 4  # most edits of one clip by one instruction, the best by direction


def rejection_reason(scores: CLIPScores, config: FilterConfig) -> str:
    """The thresholds that are missed, in words; empty where none is."""
    least = {
        "image": config.image,
        "text_source": config.text,
        "text_edited": config.text,
        "direction": config.direction,
        "consistency": config.consistency,
    }
    found = dataclasses.asdict(scores)
    return "; ".join(
        f"{name} {found[name]:.3f} below {limit}"
        for name, limit in least.items()
        if not found[name] >= limit
    )


def keep_best(lines: Iterable[dict], keep: int) -> tuple[set[str], dict[str, str]]:
    """Of accepted edits, lines with id, prompt and scores: (ids that are kept, id -> why not), at most `keep` a prompt, by direction, then by id."""
    prompts: dict[str, list[dict]] = {}
    for line in lines:
        prompts.setdefault(line["prompt"], []).append(line)
    kept, dropped = set(), {}
    for group in prompts.values():
        ordered = sorted(group, key=lambda line: (-line["scores"]["direction"], line["id"]))
        kept |= {line["id"] for line in ordered[:keep]}
        dropped |= {
            line["id"]: f"{keep} edits by the same instruction point the right way more clearly"
            for line in ordered[keep:]
        }
    return kept, dropped


def calibrate_thresholds(
    true: Sequence[CLIPScores],
    false: Sequence[CLIPScores],
    config: FilterConfig,
    recall: float = 0.95,
) -> FilterConfig:
    """The config with thresholds for another CLIP, where true edits are known: each the largest that this share of true edits passes by itself.

    Raises ValueError where fewer than 20 are given, or where no threshold turns any false edit away.
    """
    if len(true) < 20 or len(false) < 20:
        raise ValueError(
            f"{len(true)} true and {len(false)} false edits are too few to calibrate on: at least 20 of each are needed"
        )

    def limit(*names: str) -> float:
        return float(
            min(np.quantile([getattr(each, name) for each in true], 1 - recall) for name in names)
        )

    found = dataclasses.replace(
        config,
        image=limit("image"),
        text=limit("text_source", "text_edited"),
        direction=limit("direction"),
        consistency=limit("consistency"),
    )
    if not any(rejection_reason(each, found) for each in false):
        raise ValueError("this CLIP tells no false edit from a true one")
    return found
