"""Opens video files with PyAV: by content, local files only, and never a playlist.

FFmpeg probes every format that it knows. Some of them (hls, concat, dash, sdp, image2 patterns) are
lists of references, and opening one reads other files or the network. So the demuxers are an
allow-list, which FFmpeg checks before it reads a header, and the only protocol is `file`.
"""

from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ivid2vid_jax.errors import UserError

DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "apng,asf,avi,dv,dvd,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,mjpeg,mpeg,mpegts,mpegvideo",
    "mxf,nut,nuv,obu,ogg,rm,roq,vc1,vvc,wtv,y4m,yuv4mpegpipe",
)
OPTIONS = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "file"}
MOTION_JPEG = (".mjpeg", ".mjpg")  # JPEG images one after the other: looks like a still image


def open_container(path: Path) -> InputContainer:
    """Opens a video file for reading.

    Raises UserError for a file that is not video of a supported format, has no video stream or
    cannot be opened. Any file name works, also one with a colon, a percent sign or a dash.
    """
    demuxer = "mjpeg" if path.suffix.lower() in MOTION_JPEG else None
    try:
        # A file: URL of an absolute path is taken literally; a bare name "a:b.mp4" is a protocol.
        container = av.open(f"file:{path.absolute()}", format=demuxer, options=OPTIONS)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: is not a video that can be read, or it is cut off ({reason(error)})"
        ) from error
    if not video_streams(container):
        container.close()
        raise UserError(f"{path}: holds no video stream that can be decoded")
    return container


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The streams that show moving pictures and have a decoder: no cover art, no thumbnails."""
    return [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None
        and not stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
    ]


def best_video_stream(container: InputContainer) -> VideoStream:
    """The default video stream, or else the largest one."""

    def rank(stream: VideoStream) -> tuple[bool, int]:
        return bool(stream.disposition & Disposition.default), stream.width * stream.height

    return max(video_streams(container), key=rank)


def default_audio_stream(container: InputContainer):
    """The audio track that a player picks, as `av_find_best_stream` does; None if there is none."""
    return container.streams.best("audio")


def reason(error: Exception) -> str:
    """The cause in FFmpeg's words, without its error number and path."""
    return getattr(error, "strerror", None) or str(error)
