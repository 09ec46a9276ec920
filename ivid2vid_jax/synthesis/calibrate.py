"""`python -m ivid2vid_jax.synthesis.calibrate`: thresholds of the data engine's filter for a CLIP of one's own, where the true edits are known.

python -m ivid2vid_jax.synthesis.calibrate --model shapes-clip --base shapes-base --count 200
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import STYLES, apply_edit
from ivid2vid_jax.evaluation.clip_scores import CLIPScores, clip_scorer, load_clip
from ivid2vid_jax.inference.pipeline import load
from ivid2vid_jax.synthesis.filter import FilterConfig, calibrate_thresholds, rejection_reason
from ivid2vid_jax.synthesis.sources import ANY_SCENE_KINDS, EDIT_KINDS
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import wilson_interval
from ivid2vid_jax.utils.progress import Progress

GROUPS = ("true edits", "unedited", "wrong edits")
MIN_COUNT = 20  # clips on either side


@dataclasses.dataclass
class CalibrateArgs:
    """Finds thresholds on half of the clips of the shapes world, and tells on the other half what passes them: true edits, the unedited source, and the
    true edit by another instruction, half of the time of the same kind where that has others to choose from.
    """

    model: str = "shapes-clip"  # CLIP: a folder, a run, of the hub, or embedded
    base: str | None = (
        "shapes-base"  # its autoencoder blurs the edits as it does those that the engine makes; "None" leaves them as drawn
    )
    count: int = 200  # clips
    recall: float = 0.95  # share of true edits that each threshold passes by itself
    seed: int = 77
    size: int = 64  # pixels of a side
    frames: int = 8


def run(args: CalibrateArgs) -> None:
    """Prints the filter's config and what it lets pass."""
    if not 2 * MIN_COUNT <= args.count <= 10**6 or not 0.5 <= args.recall < 1:
        raise UserError(
            f"--count {args.count} must be between {2 * MIN_COUNT} and 1000000, --recall {args.recall} at least 0.5 and below 1"
        )
    drawn = load(args.base).reconstruct if args.base else lambda clip: clip
    with Progress("clips") as progress:
        found = scores(args, clip_scorer(load_clip(args.model)), drawn, progress)
    half = args.count // 2
    true, *false = ([each[group] for each in found[:half]] for group in GROUPS)
    try:
        config = calibrate_thresholds(
            true,
            [each for group in false for each in group],
            FilterConfig(model=args.model),
            args.recall,
        )
    except ValueError as error:
        raise UserError(
            f"--model {args.model}: {error}; train it longer, or lower --recall {args.recall}"
        ) from error
    config = dataclasses.replace(
        config,
        **{
            name: round(getattr(config, name), 3)
            for name in ("image", "text", "direction", "consistency")
        },
    )
    print(config)
    print(table({group: [each[group] for each in found[half:]] for group in GROUPS}, config))


def scores(
    args: CalibrateArgs,
    judge: Callable,
    drawn: Callable[[np.ndarray], np.ndarray],
    progress: Callable,
) -> list[dict[str, CLIPScores]]:
    """Of each clip, the scores of its edits by group."""
    out, rng = [], np.random.default_rng(args.seed)
    for index in range(args.count):
        spec = shapes.sample_spec(
            args.seed, index, kinds=EDIT_KINDS, size=args.size, frames=args.frames
        )
        source, captions = (
            shapes.render(spec.scene, spec.size, spec.frames),
            (shapes.caption(spec.scene), shapes.caption(spec.edited)),
        )
        edits = (spec.edited, spec.scene, wrong(spec, rng))
        out.append(
            {
                group: judge(source, drawn(shapes.render(scene, spec.size, spec.frames)), *captions)
                for group, scene in zip(GROUPS, edits, strict=True)
            }
        )
        progress(index + 1, args.count)
    return out


def wrong(spec: shapes.Spec, rng: np.random.Generator):
    """The scene as another instruction would have it."""
    same = (spec.edit.kind,) * len(ANY_SCENE_KINDS) if spec.edit.kind in ANY_SCENE_KINDS else ()
    while True:
        edit = shapes.sample_edit(rng, spec.scene, str(rng.choice((*ANY_SCENE_KINDS, *same))))
        scene = apply_edit(spec.scene, edit) if edit.value or edit.kind in STYLES else spec.edited
        if scene != spec.edited:
            return scene


def table(found: dict[str, list[CLIPScores]], config: FilterConfig) -> str:
    """Markdown: the share of each group that passes, and the means of its scores; precision where the groups are as many as each other."""
    names = [field.name for field in dataclasses.fields(CLIPScores)]
    lines = ["| clips | pass [95%] | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    passed = {
        group: sum(not rejection_reason(each, config) for each in members)
        for group, members in found.items()
    }
    for group, members in found.items():
        (low, high), share = (
            wilson_interval(passed[group], len(members)),
            passed[group] / len(members),
        )
        means = [f"{np.mean([getattr(each, name) for each in members]):.3f}" for name in names]
        lines.append(
            "| "
            + " | ".join(
                [
                    f"{len(members)} {group}",
                    f"{100 * share:.1f}% [{100 * low:.0f}, {100 * high:.0f}]",
                    *means,
                ]
            )
            + " |"
        )
    true, every = passed[GROUPS[0]], sum(passed.values())
    return "\n".join(
        [
            *lines,
            "",
            f"precision {100 * true / max(1, every):.1f}% of {every} that pass, recall {100 * true / len(found[GROUPS[0]]):.1f}%",
        ]
    )


if __name__ == "__main__":
    main(CalibrateArgs, run)
