"""Small media files of kinds that people have (tests/media), and what FFmpeg says of a file.

The files were made with ffmpeg's test sources, Pillow and numpy; each kind was a public bug report
of a comparable project.
"""

from pathlib import Path

import av
import numpy as np

MEDIA = Path(__file__).parents[1] / "media"
GAP = 0.3  # s of silence between two beeps

# Files that name other files: a format's name -> its content, with the other file's name as {}.
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{}'
    "</BaseURL></Period></MPD>",
    "m3u": "{}\n",
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    "smil": '<smil><body><video src="{}"/></body></smil>',
}
PLAYLIST_SUFFIXES = (".m3u8", ".mp4", ".ts", ".mkv", ".txt", ".gif", ".mpd", ".pls", ".sdp", "")


def flashes(path: Path) -> list[float]:
    """Times at which the picture turns bright, by FFmpeg's own time stamps."""
    times, bright = [], False
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            now_bright = frame.to_ndarray(format="gray").mean() > 120
            if now_bright and not bright:
                times.append(float(frame.time))
            bright = now_bright
    return times


def beeps(path: Path) -> list[float] | None:
    """Times at which the sound begins after silence; None without a sound track."""
    times, last = [], -9.0
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        for frame in container.decode(container.streams.audio[0]):
            samples = frame.to_ndarray().astype(np.float64)
            if not frame.format.is_planar:
                samples = samples.reshape(-1, len(frame.layout.channels)).T
            if frame.format.name.startswith("s16"):
                samples /= 2**15
            for index in np.flatnonzero(np.abs(samples).max(0) > 0.05):
                time = float(frame.time) + index / frame.sample_rate
                if time - last > GAP:
                    times.append(time)
                last = time
    return times


def duration(path: Path, kind: str) -> float:
    """Seconds of a stream, from its first to the end of its last packet."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        end = max((packet.pts + packet.duration) * packet.time_base for packet in packets)
        return float(end)


def faststart(path: Path, target: Path) -> None:
    """Copies a video with its index in front, as a download has it that stops midway."""
    options = {"movflags": "+faststart"}
    with av.open(str(path)) as source, av.open(str(target), "w", container_options=options) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)


def write_blank_video(path: Path, frames: int) -> Path:
    """Writes a video of many frames of 16x16 pixels, quickly; returns its path."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 16
        for _ in range(frames):
            output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        output.mux(stream.encode())
    return path
