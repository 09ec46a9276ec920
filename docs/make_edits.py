"""Draws the README's picture of edits: `python docs/make_edits.py` writes docs/edits.gif.

The clips are the first held-out clip of each kind of edit in the shapes world (training never
drew their combination of shape, colour, background and phrasing). The embedded editor edits them
with its default settings.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ivid2vid_jax
from ivid2vid_jax.data import shapes
from ivid2vid_jax.video.write import write_clip

KINDS = ("colour", "background", "negative", "add", "remove", "size")
FRAMES, FPS = 12, 8
SCALE = 3  # enlargement of the 64x64 clips
MARGIN, TITLE_HEIGHT = 12, 56  # pixels


def sample_clips(seed: int) -> list[tuple[np.ndarray, str]]:
    """Source clips [T, H, W, 3] with their instructions, one for each of `KINDS`."""
    specs = [
        shapes.sample_spec(seed, 0, split="eval", kinds=(kind,), frames=FRAMES) for kind in KINDS
    ]
    triplets = [shapes.triplet(spec) for spec in specs]
    return [(triplet.source, triplet.instruction) for triplet in triplets]


def wrap(text: str, width: int, font: ImageFont.ImageFont) -> str:
    """The text broken into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def draw_frame(columns: list[tuple[np.ndarray, np.ndarray, str]]) -> np.ndarray:
    """One frame of the picture: a column for each clip with its instruction, source and edit."""
    font = ImageFont.load_default(size=19)
    side = SCALE * columns[0][0].shape[0]
    width = MARGIN + len(columns) * (side + MARGIN)
    page = Image.new("RGB", (width, TITLE_HEIGHT + 2 * (side + MARGIN)), "white")
    draw = ImageDraw.Draw(page)
    for i, (source, edit, instruction) in enumerate(columns):
        left = MARGIN + i * (side + MARGIN)
        title = wrap(instruction, side, font)
        draw.multiline_text((left, MARGIN // 2), title, fill="black", font=font)
        for row, pixels in enumerate((source, edit)):
            cell = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            page.paste(cell, (left, TITLE_HEIGHT + row * (side + MARGIN)))
    return np.asarray(page)


def main() -> None:
    """Edits the clips and writes the animation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="draws the clips and the noise")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("edits.gif"))
    args = parser.parse_args()
    clips = sample_clips(args.seed)
    pipe = ivid2vid_jax.load()
    edits = [pipe.edit(source, instruction, seed=args.seed) for source, instruction in clips]
    frames = [
        draw_frame(
            [
                (source[t], edit[t], instruction)
                for (source, instruction), edit in zip(clips, edits, strict=True)
            ]
        )
        for t in range(FRAMES)
    ]
    write_clip(args.output, iter(frames), [Fraction(t, FPS) for t in range(FRAMES)], Fraction(FPS))
    print(f"wrote {args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
