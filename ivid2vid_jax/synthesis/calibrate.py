"""`python -m ivid2vid_jax.synthesis.calibrate`: thresholds of the filter for another CLIP.

They are found on the shapes world, where the true edits are known:

python -m ivid2vid_jax.synthesis.calibrate --model shapes-clip --base shapes-base --count 200
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import STYLES, Scene, apply_edit
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.clip_scores import CLIPScores, clip_scorer, load_clip
from ivid2vid_jax.inference.pipeline import load
from ivid2vid_jax.synthesis.filter import (
    MIN_CALIBRATION,
    FilterConfig,
    calibrate_thresholds,
    rejection_reason,
)
from ivid2vid_jax.synthesis.sources import ANY_SCENE_KINDS, EDIT_KINDS
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.intervals import wilson_interval
from ivid2vid_jax.utils.progress import Progress

TRUE, UNEDITED, WRONG = GROUPS = ("true edits", "unedited", "wrong edits")
MIN_COUNT = 2 * MIN_CALIBRATION  # clips: one half calibrates, the other one tests


@dataclasses.dataclass
class CalibrateArgs:
    """Finds the filter's thresholds on one half of the clips and tests them on the other.

    Each clip is scored with its true edit, unedited, and with the true edit of another instruction,
    half of the time of the same kind where that kind has several values.
    """

    model: str = "shapes-clip"  # CLIP: folder, run, hub name, or embedded
    # model whose autoencoder reconstructs the edits, so they are as blurred as synthesised ones;
    # "None": edits as rendered
    base: str | None = "shapes-base"
    count: int = 200  # number of clips
    recall: float = 0.95  # share of true edits that each threshold passes
    seed: int = 77  # seed of clips and wrong edits
    size: int = 64  # pixels per side
    frames: int = 8  # number of frames per clip


def run(args: CalibrateArgs) -> None:
    """Prints the filter's config, and how many edits of each group it passes."""
    if not MIN_COUNT <= args.count <= 10**6 or not 0.5 <= args.recall < 1:
        raise UserError(
            f"--count {args.count} must be between {MIN_COUNT} and 1000000, "
            f"--recall {args.recall} at least 0.5 and below 1"
        )
    reconstruct = load(args.base).reconstruct if args.base else lambda clip: clip
    with Progress("clips") as progress:
        clips = score_clips(args, clip_scorer(load_clip(args.model)), reconstruct, progress)
    half = args.count // 2
    calibration, test = by_group(clips[:half]), by_group(clips[half:])
    try:
        config = calibrate_thresholds(
            calibration[TRUE],
            calibration[UNEDITED] + calibration[WRONG],
            FilterConfig(model=args.model),
            args.recall,
        )
    except ValueError as error:
        raise UserError(
            f"--model {args.model}: {error}; train it longer, or lower --recall {args.recall}"
        ) from error
    names = ("image", "text", "direction", "consistency")
    config = dataclasses.replace(
        config, **{name: round(getattr(config, name), 3) for name in names}
    )
    print(config)
    print(table(test, config))


def score_clips(
    args: CalibrateArgs,
    scorer: Callable[[np.ndarray, np.ndarray, str, str], CLIPScores],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    progress: Callable[[int, int], None],
) -> list[dict[str, CLIPScores]]:
    """Per clip: group -> scores of its edit, judged by the captions of the true edit."""
    clips, rng = [], np.random.default_rng(args.seed)
    for index in range(args.count):
        spec = shapes.sample_spec(
            args.seed, index, kinds=EDIT_KINDS, size=args.size, frames=args.frames
        )
        source = shapes.render(spec.scene, spec.size, spec.frames)
        captions = shapes.caption(spec.scene), shapes.caption(spec.edited)
        scenes = {TRUE: spec.edited, UNEDITED: spec.scene, WRONG: wrong_scene(spec, rng)}
        scores = {}
        for group, scene in scenes.items():
            edited = reconstruct(shapes.render(scene, spec.size, spec.frames))
            scores[group] = scorer(source, edited, *captions)
        clips.append(scores)
        progress(index + 1, args.count)
    return clips


def by_group(clips: list[dict[str, CLIPScores]]) -> dict[str, list[CLIPScores]]:
    """Group -> scores of all clips."""
    return {group: [scores[group] for scores in clips] for group in GROUPS}


def wrong_scene(spec: shapes.Spec, rng: np.random.Generator) -> Scene:
    """The scene after another edit than the spec's, half of the time one of the same kind."""
    kind = spec.edit.kind
    same_kind = (kind,) * len(ANY_SCENE_KINDS) if kind in ANY_SCENE_KINDS else ()
    while True:
        edit = shapes.sample_edit(rng, spec.scene, str(rng.choice((*ANY_SCENE_KINDS, *same_kind))))
        if not edit.value and edit.kind not in STYLES:
            continue  # there is no other value
        scene = apply_edit(spec.scene, edit)
        if scene != spec.edited:
            return scene


def table(groups: dict[str, list[CLIPScores]], config: FilterConfig) -> str:
    """Markdown: pass rate and mean scores of each group, then precision and recall.

    The precision presumes groups of equal size.
    """
    names = [field.name for field in dataclasses.fields(CLIPScores)]
    lines = ["| clips | pass [95%] | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    passed = {
        group: sum(not rejection_reason(scores, config) for scores in members)
        for group, members in groups.items()
    }
    for group, members in groups.items():
        low, high = wilson_interval(passed[group], len(members))
        share = passed[group] / len(members)
        cells = [
            f"{len(members)} {group}",
            f"{100 * share:.1f}% [{100 * low:.0f}, {100 * high:.0f}]",
            *(f"{np.mean([getattr(scores, name) for scores in members]):.3f}" for name in names),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    total = sum(passed.values())
    precision = 100 * passed[TRUE] / max(1, total)
    recall = 100 * passed[TRUE] / len(groups[TRUE])
    summary = f"precision {precision:.1f}% of {total} that pass, recall {recall:.1f}%"
    return "\n".join([*lines, "", summary])


if __name__ == "__main__":
    main(CalibrateArgs, run)
