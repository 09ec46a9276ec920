"""The sound track of a clip on its way into another container, in sync with the picture.

Packets are copied if the container takes the codec and they are contiguous; else the sound is
decoded, resampled and encoded anew. Silence fills what has no sound: a late start, gaps, damage.
"""

import dataclasses
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer, OutputContainer

from ivid2vid_jax.video.container import default_audio_stream, open_container

log = logging.getLogger(__name__)

TOLERANCE = Fraction(1, 50)  # s, by which a time stamp may be off before silence is put in
MAX_GAP = 3600  # s; a larger step of the time stamps is a new clock (joined streams), not a gap
MAX_OVERLAP = 1  # s, likewise backwards
MAX_DAMAGE = 10_000  # places that cannot be decoded, after which the rest is silent
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1"}  # others: stereo
RATES = {"libopus": (48_000, 24_000, 16_000, 12_000, 8_000)}
AAC_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)


@dataclasses.dataclass(frozen=True)
class SoundPlan:
    """How a file's default sound track is written: as packets, or by an encoder."""

    path: Path  # of the file that holds the track
    copy: bool  # packets as they are; else by the encoder, at the rate and in the layout
    encoder: str
    rate: int
    layout: str


def plan_track(path: Path, copied: tuple[str, ...], encoder: str) -> SoundPlan | None:
    """Decides how the default sound track of a video file is written; None if it has none.

    copied: codecs that the target container takes. encoder: for all others.
    """
    with open_container(path) as container:
        stream = default_audio_stream(container)
        if stream is None:
            return None
        context = stream.codec_context
        rates = RATES.get(encoder, AAC_RATES)
        rate = next((rate for rate in sorted(rates) if rate >= context.sample_rate), max(rates))
        layout = LAYOUTS.get(len(context.layout.channels), "stereo")
        codec = {"mp3float": "mp3"}.get(context.name, context.name)
        copy = codec in copied and is_contiguous(container, stream)
    return SoundPlan(path, copy, encoder, rate, layout)


def is_contiguous(container: InputContainer, stream) -> bool:
    """Whether the packets follow each other from the file's start on, without gap or damage."""
    origin = Fraction(container.start_time or 0, av.time_base)
    expected = None
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.is_corrupt:
                return False
            time = packet.pts * packet.time_base - origin
            if abs(time - (time if expected is None and time < 0 else expected or 0)) > TOLERANCE:
                return False
            expected = time + (packet.duration or 0) * packet.time_base
    except av.error.FFmpegError:
        return False
    return expected is not None


class SoundTrack:
    """Writes a clip's sound into an output container, from `begin` on (seconds of the clip)."""

    def __init__(self, output: OutputContainer, plan: SoundPlan, begin: Fraction):
        self.output, self.plan, self.begin = output, plan, begin
        if plan.copy:
            with open_container(plan.path) as container:
                self.stream = output.add_stream_from_template(default_audio_stream(container))
        else:
            self.stream = output.add_stream(plan.encoder, rate=plan.rate, layout=plan.layout)
            self.stream.codec_context.time_base = Fraction(1, plan.rate)

    def write(self, length: Fraction) -> None:
        """Writes `length` seconds of sound."""
        with open_container(self.plan.path) as container:
            if self.plan.copy:
                self.copy_packets(container, length)
            else:
                self.encode(container, length)

    def copy_packets(self, container: InputContainer, length: Fraction) -> None:
        """Copies the packets that start within the range shown."""
        stream = default_audio_stream(container)
        origin = Fraction(container.start_time or 0, av.time_base) + self.begin
        shift = round(origin / stream.time_base)
        for packet in container.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            if self.begin > 0 and packet.pts < shift:
                continue  # at the clip's start the packets before 0 stay: they prime the decoder
            if (packet.pts - shift) * packet.time_base >= length:
                break
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self.stream
            self.output.mux(packet)

    def encode(self, container: InputContainer, length: Fraction) -> None:
        """Encodes the sound within the range shown, with silence where there is none."""
        rate, channels = self.plan.rate, len(self.stream.codec_context.layout.channels)
        total, written = round(length * rate), 0
        for position, samples in self.pieces(container):
            if position >= total:
                break
            samples = samples[:, max(0, written - position) : total - position]
            if not samples.size:
                continue
            silence = max(0, position - written)
            for count in [rate] * (silence // rate) + [silence % rate]:
                written = self.put(np.zeros((channels, count), np.float32), written)
            written = self.put(samples, written)
        self.output.mux(self.stream.encode())

    def put(self, samples: np.ndarray, position: int) -> int:
        """Encodes samples [channels, N] at a position; returns the position after them."""
        if samples.shape[1]:
            frame = AudioFrame.from_ndarray(
                np.ascontiguousarray(samples), format="fltp", layout=self.plan.layout
            )
            frame.sample_rate, frame.pts = self.plan.rate, position
            frame.time_base = Fraction(1, self.plan.rate)
            self.output.mux(self.stream.encode(frame))
        return position + samples.shape[1]

    def pieces(self, container: InputContainer) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (position, samples [channels, N] float32) at the output's rate, in order.

        Positions count from the beginning of the range shown and may be negative.
        """
        rate, origin = self.plan.rate, Fraction(container.start_time or 0, av.time_base)
        resampler: av.AudioResampler | None = None
        position, expected = 0, None
        offset = Fraction(0)  # added to the time stamps after a joint of two streams
        for frame in self.decoded(container):
            if frame.pts is None or frame.time_base is None:
                time = expected or Fraction(0)
            else:
                time = frame.pts * frame.time_base - origin + offset
            if expected is not None and not -MAX_OVERLAP < time - expected < MAX_GAP:
                offset, time = offset + expected - time, expected
            if expected is None or abs(time - expected) > TOLERANCE:
                if resampler is not None:
                    yield from self.resampled(resampler, None, position)
                resampler = av.AudioResampler("fltp", self.plan.layout, rate)
                position = round((time - self.begin) * rate)
                expected = time
            expected += Fraction(frame.samples, frame.sample_rate)
            frame.pts = None
            assert resampler is not None
            for start, samples in self.resampled(resampler, frame, position):
                yield start, samples
                position = start + samples.shape[1]
        if resampler is not None:
            yield from self.resampled(resampler, None, position)

    @staticmethod
    def resampled(
        resampler: av.AudioResampler, frame: AudioFrame | None, position: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields what the resampler gives for a frame (None: its rest), with positions."""
        for part in resampler.resample(frame):
            yield position, part.to_ndarray()
            position += part.samples

    def decoded(self, container: InputContainer) -> Iterator[AudioFrame]:
        """Yields the frames that can be decoded; damage is logged once."""
        stream, damaged = default_audio_stream(container), 0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                yield from packet.decode()
            except (av.error.FFmpegError, OSError):
                damaged += 1
                if damaged > MAX_DAMAGE:
                    break
        if damaged:
            name = self.plan.path.name
            log.warning("%s: its sound is damaged; %d places are silent", name, damaged)
