"""Parts and style of all report pages. A page is one file: its pictures are data URIs.

Results come first; settings, hashes and definitions are in a folded part at the end. Tables and
charts that are wider than the window scroll in their own box.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ivid2vid_jax.video.fit import resize

CLIP_SIDE = 192  # pixels of a shown clip's height
STYLE = (
    "body{font:15px/1.4 sans-serif;max-width:1100px;margin:1em auto;padding:0 1em}"
    ".scroll{overflow-x:auto}.scroll img{max-width:none}"
    "table{border-collapse:collapse}"
    "td,th{padding:.3em .7em;text-align:left;vertical-align:top;border-bottom:1px solid #ccc}"
    "td.number{text-align:right;white-space:nowrap}"
    "details td{overflow-wrap:anywhere;min-width:8em}"
    "summary{cursor:pointer;font-weight:bold;margin:1em 0}"
    "section{display:inline-block;vertical-align:top;margin:.7em 1em .7em 0;max-width:100%}"
    "h1,h3,p{overflow-wrap:anywhere}"
    "h3{font-size:1em;margin:.2em 0}p{margin:.3em 0;max-width:60em}.id{color:#666}"
    ".panels{display:inline-block;max-width:100%}.panels img{display:block;max-width:100%}"
    ".labels{display:flex}.labels span{flex:1;text-align:center}"
)


def html_page(title: str, parts: Iterable[str]) -> str:
    """A complete page of these parts below its title."""
    head = (
        f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style>'
    )
    body = f"<h1>{html.escape(title)}</h1>{''.join(parts)}"
    return f'<!doctype html><html lang="en">{head}{body}</html>\n'


def scroll_box(content: str) -> str:
    """A wide table or chart in a box that scrolls sideways."""
    return f'<div class="scroll">{content}</div>'


def folded(title: str, content: str) -> str:
    """A part of the page that is shown after a click on its title."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def record_table(record: Mapping) -> str:
    """Settings or statistics, values as JSON."""
    return definition_table({key: json.dumps(value) for key, value in record.items()})


def definition_table(entries: Mapping[str, str]) -> str:
    """A table of two columns."""
    lines = (
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in entries.items()
    )
    return scroll_box(f"<table>{''.join(lines)}</table>")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a header row; cells are escaped."""

    def row(cells: Sequence[object], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    lines = [row(head, "th"), *(row(cells, "td") for cells in rows)]
    return scroll_box(f"<table>{''.join(lines)}</table>")


def clip_section(
    title: str, id: str, image: str, labels: Sequence[str], remarks: Iterable[str] = ()
) -> str:
    """Clips side by side below their title and id.

    Args:
        title: the instruction.
        id: of the edit.
        image: data URI of the clips side by side, of equal widths.
        labels: a word per clip.
        remarks: paragraphs below the clips.
    """
    alt = f"{id}: {', '.join(labels)}"
    captions = "".join(f"<span>{html.escape(label)}</span>" for label in labels)
    paragraphs = "".join(f"<p>{html.escape(remark)}</p>" for remark in remarks)
    return (
        f'<section><h3>{html.escape(title)}</h3><p class="id">{html.escape(id)}</p>'
        f'<div class="panels"><div class="labels">{captions}</div>'
        f'<img alt="{html.escape(alt)}" src="{image}"></div>'
        f"{paragraphs}</section>"
    )


def chart(figure: Any, alt: str) -> str:
    """A matplotlib figure as an image in a box that scrolls; closes the figure."""
    from matplotlib import pyplot

    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    pyplot.close(figure)
    return scroll_box(f'<img alt="{alt}" src="{data_uri(out.getvalue(), "png")}">')


def image_tag(image: Image.Image, alt: str) -> str:
    """An image as an <img> element."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return scroll_box(f'<img alt="{alt}" src="{data_uri(out.getvalue(), "png")}">')


def data_uri(data: bytes, kind: str) -> str:
    """An image file's bytes as a data URI; kind: "png", "webp" or "gif"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def animation(clip: np.ndarray, fps: float) -> bytes:
    """Encodes a clip [T, H, W, 3] uint8 as animated WebP, which browsers play without a player.

    The height becomes about CLIP_SIDE: small clips are enlarged by a whole factor.
    """
    height, width = clip.shape[1:3]
    scale = CLIP_SIDE / height
    if scale >= 1:
        size = (width * int(scale), height * int(scale))
        frames = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in clip]
    else:
        shape = (round(height * scale), round(width * scale))
        frames = [Image.fromarray(resize(frame, shape)) for frame in clip]
    out = io.BytesIO()
    frames[0].save(
        out,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=max(20, round(1000 / fps)),
        loop=0,
        quality=85,
    )
    return out.getvalue()
