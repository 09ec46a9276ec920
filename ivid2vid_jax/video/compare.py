"""Source and edit side by side, as a clip and as a contact sheet."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.video.fit import resize
from ivid2vid_jax.video.read import Clip, open_clip
from ivid2vid_jax.video.write import CONTAINERS, write_clip

COLUMNS = 6  # frames shown on a sheet
CELL = 256  # pixels of a shown frame's longer side
MARGIN = 8


def write_comparison(
    source: Clip, edited: Path, instruction: str, times: list[Fraction], rate: Fraction
) -> list[Path]:
    """Writes NAME_compare and NAME_sheet.png beside the edited clip and returns their paths."""
    ending = (
        edited.suffix if edited.suffix.lower() in (*CONTAINERS, ".gif", ".webp", ".png") else ".mp4"
    )
    stem = edited.with_suffix("").name
    pair, picture = (
        edited.with_name(f"{stem}_compare{ending}"),
        edited.with_name(f"{stem}_sheet.png"),
    )
    write_clip(pair, side_by_side(source, edited), times, rate)
    shown = set(np.linspace(0, len(times) - 1, min(COLUMNS, len(times))).round().astype(int))
    columns = [halves for i, halves in enumerate(comparison_halves(source, edited)) if i in shown]
    with atomic_path(picture) as target:
        contact_sheet(columns, instruction).save(target, format="PNG")
    return [pair, picture]


def comparison_halves(source: Clip, edited: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the frames of source and edit in pairs of one size (mp4 pads odd sides)."""
    for before, after in zip(source.frames(), open_clip(edited).frames(), strict=True):
        height, width = before.pixels.shape[:2]
        yield before.pixels, after.pixels[:height, :width]


def side_by_side(source: Clip, edited: Path) -> Iterator[np.ndarray]:
    """[H, 2W, 3] frames: the source on the left."""
    return (np.concatenate(halves, axis=1) for halves in comparison_halves(source, edited))


def write_panels(animation: Path, clips: list[np.ndarray], title: str, fps: float) -> Path:
    """Writes clips [T, H, W, 3] of one shape side by side, small ones enlarged.

    Also writes a contact sheet, NAME_sheet.png, and returns its path.
    """
    wide = np.concatenate(clips, axis=2)
    enlarged = max(1, CELL // clips[0].shape[1])
    wide = wide.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
    rate = Fraction(fps).limit_denominator(1001)
    write_clip(animation, iter(wide), [i / rate for i in range(len(wide))], rate)
    shown = np.unique(np.linspace(0, len(wide) - 1, min(COLUMNS, len(wide))).round().astype(int))
    picture = animation.with_name(f"{animation.stem}_sheet.png")
    with atomic_path(picture) as target:
        contact_sheet([tuple(clip[i] for clip in clips) for i in shown], title).save(
            target, format="PNG"
        )
    return picture


def contact_sheet(columns: Sequence[tuple[np.ndarray, ...]], title: str) -> Image.Image:
    """A contact sheet: a row per clip (source, edit, ...), a column per frame, under the title."""
    H, W = columns[0][0].shape[:2]
    height, width = (max(1, round(side * CELL / max(H, W))) for side in (H, W))
    font, top = ImageFont.load_default(size=20), 2 * MARGIN + 24
    size = (MARGIN + len(columns) * (width + MARGIN), top + len(columns[0]) * (height + MARGIN))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    while len(title) > 4 and draw.textlength(title, font) > size[0] - 2 * MARGIN:
        title = title[:-4] + "..."
    draw.text((MARGIN, MARGIN), title, fill="black", font=font)
    for i, halves in enumerate(columns):
        for row, pixels in enumerate(halves):
            place = (MARGIN + i * (width + MARGIN), top + row * (height + MARGIN))
            page.paste(Image.fromarray(resize(pixels, (height, width))), place)
    return page
