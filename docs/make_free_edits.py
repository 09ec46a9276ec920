"""Draws right and wrong results of the edits that one frame cannot decide.

`python docs/make_free_edits.py` writes docs/free-edits.png. The verdict under each result is that
of the checker; a picture in which it is not the expected one is not written.
"""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.checker import true_edit

FRAMES, MARGIN, TITLE = 5, 10, 18
COLUMNS = ("source", "right", "wrong")


def examples(kind: str) -> tuple[str, list[np.ndarray], list[bool]]:
    """The instruction; clips for COLUMNS; whether the two results pass."""
    spec = shapes.sample_spec(2, 0, split="eval", kinds=(kind,), frames=8)
    triplet = shapes.triplet(spec)
    clips = [triplet.source, triplet.edited, wrong_result(spec, triplet.source, triplet.edited)]
    return triplet.instruction, clips, [shapes.check(clips[0], x, spec).passed for x in clips[1:]]


def wrong_result(spec: shapes.Spec, source: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """What an editor of single frames may do: another value in each frame, or a wrong guess."""
    rng = np.random.default_rng(0)
    if spec.edit.kind in shapes.FREE_KINDS:
        results = [true_edit(source, result) for result in shapes.choices(spec)]
        return np.stack([results[rng.integers(len(results))][t] for t in range(spec.frames)])
    if spec.edit.kind == "remove-flicker":
        return source
    if spec.edit.kind == "hidden-colour":
        half = np.arange(spec.frames)[:, None, None, None] < 4
        return np.where(half, edited, source)
    empty = shapes.render(dataclasses.replace(spec.edited, objects=()), spec.size, spec.frames)
    return np.where((source != edited).any(-1, keepdims=True), empty, edited)


def main() -> None:
    """Writes the picture."""
    font = ImageFont.load_default(size=13)
    kinds = (*shapes.FREE_KINDS, *shapes.TEMPORAL_KINDS)
    width = MARGIN + len(COLUMNS) * (FRAMES * 64 + MARGIN)
    page = Image.new("RGB", (width, TITLE + MARGIN + len(kinds) * (64 + TITLE + MARGIN)), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(COLUMNS):
        draw.text((MARGIN + column * (FRAMES * 64 + MARGIN), 2), title, fill="grey", font=font)
    for row, kind in enumerate(kinds):
        instruction, clips, passed = examples(kind)
        assert passed == [True, False], kind
        top = TITLE + MARGIN + row * (64 + TITLE + MARGIN)
        draw.text((MARGIN, top - 2), f"{kind}: {instruction}", fill="black", font=font)
        for column, clip in enumerate(clips):
            left = MARGIN + column * (FRAMES * 64 + MARGIN)
            page.paste(
                Image.fromarray(np.concatenate(clip[1 : 1 + FRAMES], 1)), (left, top + TITLE)
            )
    path = Path(__file__).with_name("free-edits.png")
    page.save(path, optimize=True)
    print(f"wrote {path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
