"""Frames of a video file with their times, upright and in SDR RGB."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.container import best_video_stream, open_container, reason
from ivid2vid_jax.video.frame_converter import FrameConverter
from ivid2vid_jax.video.frame_size import check_frame_size

DEFAULT_RATE = Fraction(8)  # frames/s where the input has no clock (folders of frames)
MAX_JUMP = 10  # s; a larger step of the time stamps is a new clock (joined streams), not a gap
SEEKABLE = ("mov", "matroska", "avi", "asf", "flv", "ogg")  # have an index or cues
SEEK_FROM = 2  # s; an earlier start is decoded from the beginning
COVERED = 0.95  # share of the announced duration that a whole file has at least


class Frame(NamedTuple):
    """pixels: [H, W, 3] uint8, upright. time: seconds since the file's start, exact."""

    pixels: np.ndarray
    time: Fraction


class FrameClock:
    """Times of frames in the order of display: increasing, in seconds since the file's start.

    Where a container stores no time stamps, they follow from the frame rate. Where they jump back
    or far ahead (joined streams), the clock goes on by one frame.
    """

    def __init__(self, container: InputContainer, stream: VideoStream):
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
        self.step = 1 / Fraction(rate)
        start = container.start_time
        self.offset = -Fraction(start, av.time_base) if start is not None else Fraction(0)
        self.last: Fraction | None = None

    def __call__(self, frame: VideoFrame) -> Fraction:
        """The time of the next frame."""
        if frame.pts is None or frame.time_base is None:
            time = Fraction(0) if self.last is None else self.last + self.step
        else:
            stamp = Fraction(frame.pts * frame.time_base)
            time = stamp + self.offset
            if self.last is None:
                if time < 0:  # a start time that is not this stream's
                    self.offset, time = -stamp, Fraction(0)
            elif not 0 < time - self.last <= MAX_JUMP:
                time = self.last + self.step
                self.offset = time - stamp
        self.last = time
        return time


def container_frames(
    path: Path, start: Fraction | None = None, size: tuple[int, int] | None = None
) -> Iterator[Frame]:
    """Yields the frames of a video file in order; those before `start` may be left out.

    size: (height, width) of the frames; None for their own.
    Raises UserError, naming the place, where the file breaks off or cannot be decoded.
    """
    with open_container(path) as container:
        stream = best_video_stream(container)
        stream.thread_type = "AUTO"
        check_frame_size(str(path), stream.height, stream.width)
        frames = decode_stream(path, container, stream, size)
        if start is not None and start > SEEK_FROM and seek(container, stream, start):
            first = next(frames, None)
            if first is not None and first.time <= start:
                yield from itertools.chain([first], frames)
                return
        else:
            yield from frames
            return
    yield from container_frames(path, size=size)  # the index is wrong: decode from the beginning


def seek(container: InputContainer, stream: VideoStream, start: Fraction) -> bool:
    """Moves to the key frame before `start`, if the format has an index."""
    if container.format.name.partition(",")[0] not in SEEKABLE:
        return False
    origin = Fraction(container.start_time or 0, av.time_base)
    assert stream.time_base is not None
    try:
        container.seek(int((start + origin) / stream.time_base), stream=stream)
    except av.error.FFmpegError:
        return False
    return True


def decode_stream(
    path: Path, container: InputContainer, stream: VideoStream, size: tuple[int, int] | None
) -> Iterator[Frame]:
    """Yields the frames of a stream from where the container stands."""
    converter = FrameConverter(float(stream.sample_aspect_ratio or 1), size)
    clock, decoder = FrameClock(container, stream), decoder_of(stream)
    count, end = 0, Fraction(0)
    try:
        for packet in container.demux(stream):
            end = max(end, end_of(packet))
            if packet.size == 0 and packet.dts is not None:
                continue  # an AVI null frame: the one before stays on show
            for frame in decoder.decode(packet):
                check_frame_size(str(path), frame.height, frame.width)
                for time, pixels in converter(frame, clock(frame)):
                    count += 1
                    yield Frame(pixels, time)
        for time, pixels in converter.flush():
            count += 1
            yield Frame(pixels, time)
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"{path}: breaks off or is damaged after {count} frames ({reason(error)}); "
            "use --end, or repair the file"
        ) from error
    check_covered(path, stream, end, count)


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """The stream's decoder; for VP8 and VP9 with an alpha channel libvpx, which decodes it."""
    name = stream.codec_context.name
    if name in ("vp8", "vp9") and stream.metadata.get("alpha_mode") == "1":
        return av.CodecContext.create("libvpx-vp9" if name == "vp9" else "libvpx", "r")
    return stream.codec_context


def end_of(packet: Packet) -> Fraction:
    """The end of a packet in its stream's clock, in seconds."""
    stamp = packet.pts if packet.pts is not None else packet.dts
    return Fraction(0) if stamp is None else (stamp + (packet.duration or 0)) * packet.time_base


def check_covered(path: Path, stream: VideoStream, end: Fraction, count: int) -> None:
    """Raises UserError if the packets end well before the duration that the header announces."""
    if not stream.duration or stream.time_base is None:
        return
    duration = stream.duration * stream.time_base
    covered = end - (stream.start_time or 0) * stream.time_base
    step = 1 / Fraction(stream.average_rate or DEFAULT_RATE)
    if covered < COVERED * duration - step:
        raise UserError(
            f"{path}: announces {float(duration):.2f} s but breaks off after "
            f"{float(covered):.2f} s ({count} frames); it is cut off or damaged"
        )
