"""Decoded frames to upright, square-pixel SDR RGB: one libavfilter graph per clip.

The graph deinterlaces, converts matrix, range, transfer and primaries, resamples once, to square
pixels or to the size that is asked for, and applies the display matrix, as a player does. It is
rebuilt when the frames' format changes.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame

from ivid2vid_jax.video.fit import resize

UNSPECIFIED = 2  # of ISO/IEC 23091-2, for matrix, transfer and primaries
HDR_TRANSFERS = (16, 18)  # PQ (SMPTE ST 2084) and HLG (ARIB STD-B67)
WIDE_PRIMARIES = (9, 11, 12)  # BT.2020, DCI-P3, Display P3
HD_LINES = 720  # untagged video is BT.709 from this height on, else BT.601, as players assume
# Without resampling, exact rounding and interpolated chroma take 18 ms for a 1080p frame and
# swscale's table of colours takes 1 ms. They differ by 1 grey level on average, so large frames are
# converted by the table, as ffmpeg does by default.
ACCURATE, FAST = "bicubic+accurate_rnd+full_chroma_int", "bicubic"
FAST_PIXELS = 1280 * 720
MATRICES = {0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m"}
MATRICES |= {8: "ycgco", 9: "bt2020nc", 10: "bt2020c"}


class FrameConverter:
    """Converts the frames of one stream to one size (height, width): the given or the first one's.

    Usage: `converter(frame, key)` and `converter.flush()` yield (key, pixels [H, W, 3] uint8).
    Deinterlacing delays frames by one, so keys come back in order but later.
    """

    def __init__(self, sample_aspect: float = 1.0, size: tuple[int, int] | None = None):
        self.sample_aspect = sample_aspect if 0.1 <= sample_aspect <= 10 else 1.0
        self.graph: Graph | None = None
        self.signature: tuple | None = None
        self.size = size
        self.keys: dict[int, Any] = {}
        self.count = 0

    def __call__(self, frame: VideoFrame, key: Any) -> Iterator[tuple[Any, np.ndarray]]:
        """Pushes a frame; yields what the graph has finished."""
        signature = signature_of(frame)
        if self.graph is None or signature != self.signature:
            yield from self.flush()
            self.graph, self.signature = self.build(frame), signature
        self.keys[self.count] = key
        frame.pts, frame.time_base, self.count = self.count, Fraction(1), self.count + 1
        self.graph.vpush(frame)
        yield from self.pull()

    def flush(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields the frames that are still inside the graph."""
        if self.graph is not None:
            self.graph.vpush(None)
            yield from self.pull()
            self.graph = None

    def pull(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields what the graph has finished."""
        assert self.graph is not None
        while True:
            try:
                frame = self.graph.vpull()
            except (BlockingIOError, EOFError):
                return
            pixels = frame.to_ndarray()
            if pixels.shape[-1] == 4:  # not resampled by the graph: transparent colours would show
                pixels = over_white(pixels)
                pixels = resize(pixels, self.size or pixels.shape[:2])
            assert frame.pts is not None and frame.time_base is not None
            index = round(frame.pts * frame.time_base)
            self.size = self.size or pixels.shape[:2]
            yield self.keys.pop(index), pixels

    def build(self, frame: VideoFrame) -> Graph:
        """A graph for frames like this one."""
        graph = Graph()
        node = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
        )
        for name, arguments in [
            *filters_for(frame, self.sample_aspect, self.size),
            ("format", "rgba" if has_alpha(frame) else "rgb24"),
            ("buffersink", None),
        ]:
            following = graph.add(name, arguments)
            node.link_to(following)
            node = following
        graph.configure()
        return graph


def filters_for(
    frame: VideoFrame, sample_aspect: float, size: tuple[int, int] | None
) -> list[tuple[str, str]]:
    """The filters, (name, arguments), that turn frames like this one into what a player shows.

    size: (height, width) of the result; None for that of the player's window.
    """
    turn = orientation_filters(display_matrix(frame))
    if size is None or has_alpha(frame):
        height, width = frame.height, frame.width
        if sample_aspect > 1:
            width = round(width * sample_aspect)
        elif sample_aspect < 1:
            height = round(height / sample_aspect)
    else:
        height, width = reversed(size) if turn and turn[0][0] == "transpose" else size
    filters = []
    if frame.interlaced_frame:
        filters.append(("bwdif", "mode=send_frame:deint=interlaced"))
    return filters + scale_filters(frame, height, width) + turn


def scale_filters(frame: VideoFrame, height: int, width: int) -> list[tuple[str, str]]:
    """Resampling, and conversion of matrix, range, transfer and primaries to full-range SDR.

    YUV is resampled to full chroma and then converted at the new size. That is as fast as
    resampling to RGB at once, whose half chroma makes errors of 2 grey levels; these are 0.3.
    """
    resampled = (height, width) != (frame.height, frame.width)
    size = f"w={width}:h={height}:flags=bicubic"
    if frame.format.is_rgb or len(frame.format.components) < 3:
        return [("scale", size)] if resampled else []
    full = frame.format.name.startswith("yuvj") or frame.color_range == 2
    span, matrix = "pc" if full else "tv", MATRICES.get(frame.colorspace)
    if matrix in (None, "gbr"):
        matrix = "bt709" if frame.height >= HD_LINES else "smpte170m"
    hdr = frame.color_trc in HDR_TRANSFERS or frame.color_primaries in WIDE_PRIMARIES
    filters, flags = [], FAST if height * width >= FAST_PIXELS else ACCURATE
    if resampled:
        same = (
            f"in_color_matrix={matrix}:out_color_matrix={matrix}:in_range={span}:out_range={span}"
        )
        full_chroma = "yuva444p" if has_alpha(frame) else "yuv444p10" if hdr else "yuv444p"
        filters, flags = [("scale", f"{size}:{same}"), ("format", full_chroma)], ACCURATE
    if not hdr:
        convert = f"flags={flags}:in_color_matrix={matrix}:in_range={span}:out_range=pc"
        return [*filters, ("scale", convert)]
    tags = f"range={span}:colorspace={matrix}:color_trc={number_or(frame.color_trc, 1)}"
    tags += f":color_primaries={number_or(frame.color_primaries, 9)}"
    convert = f"flags={ACCURATE}:out_color_matrix=bt709:out_range=pc:out_primaries=bt709"
    convert += ":out_transfer=bt709:intent=relative_colorimetric"
    return [*filters, ("setparams", tags), ("scale", convert)]


def number_or(value: int, default: int) -> int:
    """The value, or the default if it is unspecified."""
    return default if value == UNSPECIFIED else value


def orientation_filters(matrix: np.ndarray | None) -> list[tuple[str, str]]:
    """Filters that apply a display matrix [3, 3], as ffmpeg's `-autorotate` does."""
    if matrix is None:
        return []
    (a, b), (c, d) = matrix[:2, :2]
    scale = math.hypot(a, c), math.hypot(b, d)
    if 0 in scale:
        return []
    theta = math.degrees(math.atan2(b / scale[1], a / scale[0]))
    theta -= 360 * math.floor(theta / 360 + 0.9 / 360)
    if abs(theta - 90) < 1:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if abs(theta - 180) < 1:
        return [("hflip", "")] * int(a < 0) + [("vflip", "")] * int(d < 0)
    if abs(theta - 270) < 1:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    if abs(theta) > 1:
        return [("rotate", f"{theta}*PI/180")]
    return [("vflip", "")] if d < 0 else []


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """The frame's display matrix [3, 3] (16.16 fixed point as float), or None."""
    # frame.side_data would refer back to the frame, so that each frame, 3 MB at 1080p, waited for
    # Python's garbage collector: 650 MiB instead of 100
    data: Any = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
    return None if data is None else np.frombuffer(bytes(data), "<i4").reshape(3, 3) / 65536


def signature_of(frame: VideoFrame) -> tuple:
    """What a graph depends on."""
    matrix = display_matrix(frame)
    return (
        *(frame.width, frame.height, frame.format.name, frame.interlaced_frame),
        *(frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries),
        None if matrix is None else matrix.tobytes(),
    )


def has_alpha(frame: VideoFrame) -> bool:
    """Whether the frame's pixels can be transparent."""
    return frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)


def over_white(rgba: np.ndarray) -> np.ndarray:
    """[H, W, 4] uint8 with straight alpha, composed over white: [H, W, 3] uint8."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    blended = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((blended + 127) // 255).astype(np.uint8)
