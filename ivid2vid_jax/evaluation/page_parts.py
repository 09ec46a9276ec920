"""Parts of the HTML pages. A page is one file: its pictures are data URIs."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from ivid2vid_jax.video.fit import resize

CLIP_SIDE = 192  # pixels of a shown clip's height
STYLE = (
    "body{font:14px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}"
    "td,th{padding:.3em .7em;text-align:left;border-bottom:1px solid #ccc}"
    "td:first-child{min-width:12em}td.number{text-align:right;white-space:nowrap}"
    "section{display:inline-block;vertical-align:top;margin:.7em}img{max-width:100%}"
)


def html_page(parts: Iterable[str]) -> str:
    """A complete page of these parts."""
    head = (
        '<meta charset="utf-8"><title>Evaluation</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'


def record_table(record: Mapping) -> str:
    """The settings of an evaluation, values as JSON."""
    return definition_table({key: json.dumps(value) for key, value in record.items()})


def definition_table(entries: Mapping[str, str]) -> str:
    """A table of two columns."""
    lines = (
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in entries.items()
    )
    return f"<table>{''.join(lines)}</table>"


def clip_section(title: str, alt: str, source: str) -> str:
    """A clip (a data URI) below its title."""
    image = f'<img alt="{html.escape(alt)}" src="{source}">'
    return f"<section><p>{html.escape(title)}</p>{image}</section>"


def image_tag(image: Image.Image, alt: str) -> str:
    """An image as an <img> element."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return f'<img alt="{alt}" src="{data_uri(out.getvalue(), "png")}">'


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
