"""The filter of edits: CLIP similarities, as in InstructPix2Pix (arXiv 2211.09800, section 3.1.2).

Similarities are cosines per frame, averaged over the frames.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ivid2vid_jax.evaluation.clip_scores import CLIPScores

MIN_CALIBRATION = 20  # true and false edits each


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Minimum CLIP similarities of an edit.

    The defaults are InstructPix2Pix's for CLIP ViT-L/14, but `image` is InsV2V's for video (it is
    0.7 for images).
    """

    model: str = "openai/clip-vit-large-patch14"  # CLIP: hub name, folder, or shapes-clip
    image: float = 0.5  # minimum between source and edited frames
    text: float = 0.2  # minimum between each clip and its caption
    # minimum between the change of the frames and the change of the captions
    direction: float = 0.2
    consistency: float = 0.0  # minimum between neighbouring edited frames
    # maximum number of edits per clip and instruction: the best by direction
    keep: int = 4


def rejection_reason(scores: CLIPScores, config: FilterConfig) -> str:
    """The missed thresholds, in words; "" if all are met."""
    thresholds = {
        "image": config.image,
        "text_source": config.text,
        "text_edited": config.text,
        "direction": config.direction,
        "consistency": config.consistency,
    }
    values = dataclasses.asdict(scores)
    return "; ".join(
        f"{name} {values[name]:.3f} below {threshold}"
        for name, threshold in thresholds.items()
        if not values[name] >= threshold  # also if it is NaN
    )


def keep_best(lines: Iterable[dict], keep: int) -> tuple[set[str], dict[str, str]]:
    """Selects the `keep` best edits per prompt by CLIP direction; ties go by id.

    Args:
        lines: manifest lines of accepted edits, with "id", "prompt" and "scores".
        keep: maximum number per prompt.

    Returns:
        The ids that are selected, and id -> reason of the others.
    """
    prompts: dict[str, list[dict]] = {}
    for line in lines:
        prompts.setdefault(line["prompt"], []).append(line)
    selected: set[str] = set()
    dropped: dict[str, str] = {}
    for group in prompts.values():
        ranking = sorted(group, key=lambda line: (-line["scores"]["direction"], line["id"]))
        selected |= {line["id"] for line in ranking[:keep]}
        reason = f"{keep} edits by the same instruction have a higher direction score"
        dropped |= {line["id"]: reason for line in ranking[keep:]}
    return selected, dropped


def calibrate_thresholds(
    true: Sequence[CLIPScores],
    false: Sequence[CLIPScores],
    config: FilterConfig,
    recall: float = 0.95,
) -> FilterConfig:
    """Thresholds for another CLIP, from edits that are known to be right or wrong.

    Args:
        true: scores of right edits.
        false: scores of wrong edits.
        config: the config whose thresholds are replaced.
        recall: share of the right edits that each threshold passes; it is the largest that does.

    Raises:
        ValueError: fewer than MIN_CALIBRATION are given, or no wrong edit is rejected.
    """
    if len(true) < MIN_CALIBRATION or len(false) < MIN_CALIBRATION:
        raise ValueError(
            f"{len(true)} true and {len(false)} false edits are too few to calibrate on: at least "
            f"{MIN_CALIBRATION} of each are needed"
        )

    def threshold(*names: str) -> float:
        return float(
            min(
                np.quantile([getattr(scores, name) for scores in true], 1 - recall)
                for name in names
            )
        )

    calibrated = dataclasses.replace(
        config,
        image=threshold("image"),
        text=threshold("text_source", "text_edited"),
        direction=threshold("direction"),
        consistency=threshold("consistency"),
    )
    if not any(rejection_reason(scores, calibrated) for scores in false):
        raise ValueError("this CLIP rejects no false edit")
    return calibrated
