"""Clips for `pipeline.py`: reading, resizing, output formats, windows and noise.

It needs torch, diffusers, numpy and Pillow, and av to read video files.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,avi,dv,flv,h264,hevc,ivf,m4v,mpeg,mpegts,mpegvideo,"
    "mxf,nut,obu,ogg,yuv4mpegpipe"
)


class ResizeAndPad:
    """Resizes frames of `size` (height, width) to the model's size, and back.

    longer: pixels of the longer side inside the model; both sides are padded to multiples of
    `factor`.
    """

    def __init__(self, size, longer, factor):
        self.size = tuple(size)
        self.inner = tuple(max(1, round(side * longer / max(size))) for side in size)
        padding = [-side % factor for side in self.inner]
        self.margins = [(pixels // 2, pixels - pixels // 2) for pixels in padding]

    def apply(self, frame):
        """A frame of the video's size -> one of the model's size."""
        return np.pad(resize(frame, self.inner), [*self.margins, (0, 0)], mode="edge")

    def restore(self, frame):
        """A frame of the model's size -> one of the video's size."""
        (top, _), (left, _) = self.margins
        return resize(frame[top : top + self.inner[0], left : left + self.inner[1]], self.size)


def resize(frame, size):
    """Resizes a uint8 frame [H, W, 3] to (height, width)."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.LANCZOS))


def read_video(video):
    """A clip as uint8 [T, H, W, 3].

    Args:
        video: a file of a video or a picture; a PIL image or a list of them; an array [T, H, W, 3]
            or a tensor [T, 3, H, W], uint8 or float from 0 to 1, or a list of its frames. A batch
            of one clip is taken too.

    Raises:
        TypeError: it is none of these.
        ValueError: an array has another shape or range.
    """
    if isinstance(video, Image.Image):
        video = [video]
    if isinstance(video, list | tuple) and video:
        if isinstance(video[0], Image.Image):
            return np.stack([image_pixels(image) for image in video])
        video = torch.stack(list(video)) if torch.is_tensor(video[0]) else np.stack(video)
    if torch.is_tensor(video):
        pixels = video.detach().cpu()
        video = (pixels.float() if pixels.is_floating_point() else pixels).movedim(-3, -1).numpy()
    if isinstance(video, np.ndarray):
        return array_pixels(video)
    if not isinstance(video, str | Path):
        raise TypeError(
            f"a clip cannot be {type(video).__name__}; give a file, PIL images, an array "
            "[T, H, W, 3] or a tensor [T, 3, H, W]"
        )
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        with Image.open(video, formats=formats) as image:
            still = image.format in ("JPEG", "MPO")
            pictures = [image] if still else ImageSequence.Iterator(image)
            return np.stack([image_pixels(picture) for picture in pictures])
    except UnidentifiedImageError:
        return np.stack(list(video_pixels(video)))


def array_pixels(array):
    """An array [T, H, W, 3] or [1, T, H, W, 3], uint8 or float from 0 to 1, as uint8 [T, H, W, 3].

    Raises:
        ValueError: it has another shape, dtype or range.
    """
    clip = array[0] if array.ndim == 5 and len(array) == 1 else array
    is_float = np.issubdtype(clip.dtype, np.floating)
    if (
        clip.ndim != 4
        or clip.shape[-1] != 3
        or not clip.size
        or not (is_float or clip.dtype == np.uint8)
    ):
        raise ValueError(
            f"a clip must be uint8 or float, [T, H, W, 3] as an array or [T, 3, H, W] as a tensor; "
            f"got {array.dtype} {list(array.shape)} (channels last)"
        )
    if not is_float:
        return clip
    low, high = float(clip.min()), float(clip.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"float frames must be from 0 to 1, got {low:.3g} to {high:.3g}")
    return np.rint(clip * 255).astype(np.uint8)


def convert_frames(clips, output_type):
    """Edited clips, each uint8 [T, H, W, 3], in the format of diffusers' video pipelines.

    Returns:
        "pil": a list of PIL images of each clip; "np": float32 [B, T, H, W, 3] from 0 to 1; "pt": a
        tensor [B, T, 3, H, W] of the same values.
    """
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in clip] for clip in clips]
    frames = np.stack(clips).astype(np.float32) / 255
    return frames if output_type == "np" else torch.from_numpy(frames).movedim(-1, 2)


def image_pixels(picture):
    """[H, W, 3] uint8: upright, over white."""
    rgba = ImageOps.exif_transpose(picture).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba))[..., :3]


def video_pixels(path):
    """Yields the frames [H, W, 3] uint8 of a video file as a player shows them.

    Only files of listed formats are opened, never a playlist that names other files.
    """
    import av

    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    with av.open(f"file:{Path(path).absolute()}", options=options) as container:
        streams = [stream for stream in container.streams.video if not is_cover(stream)]
        if not streams:
            raise ValueError(f"{path}: holds no video stream")
        aspect = float(streams[0].sample_aspect_ratio or 1)
        for frame in container.decode(streams[0]):
            hd = frame.colorspace == 1 or (frame.colorspace == 2 and frame.height >= 720)
            pixels = frame.to_ndarray(format="rgb24", src_colorspace="ITU709" if hd else "ITU601")
            if abs(aspect - 1) > 1e-3:
                size = frame.width * max(1, aspect), frame.height / min(1, aspect)
                pixels = np.asarray(Image.fromarray(pixels).resize([round(side) for side in size]))
            yield upright(pixels, frame)


def is_cover(stream):
    """Whether a stream is cover art."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def upright(pixels, frame):
    """Applies the frame's display matrix, of turns by 90 degrees and mirrors."""
    from av.sidedata.sidedata import SideDataContainer, Type

    # frame.side_data would refer back to the frame, which then waits for the garbage collector
    data = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
    if data is None:
        return pixels
    a, b, _, c, d = np.sign(np.round(np.frombuffer(bytes(data), "<i4")[:5] / 65536))
    if a == 0 and d == 0 and b and c:  # rows become columns
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def unit_noise(shape, shared, generator, device=None):
    """Unit noise [B, C, T, h, w]; `shared` is the share of variance that all frames have."""
    noise = randn_tensor(shape, generator, device)
    if not shared:
        return noise
    common = randn_tensor((*shape[:2], 1, *shape[3:]), generator, device)
    return (1 - shared) ** 0.5 * noise + shared**0.5 * common


def plan_windows(length, window):
    """Slices of `window` frames that cover the clip, neighbours sharing a quarter of it."""
    if length <= window:
        return [slice(0, length)]
    starts = [*range(0, length - window, window - window // 4), length - window]
    return [slice(start, start + window) for start in starts]


def blend_weights(windows, length):
    """The weights [frames] of each window's predictions: a tent; those of each frame sum to 1."""
    tents = [
        np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        for n in (window.stop - window.start for window in windows)
    ]
    total = np.zeros(length, np.float32)
    for window, tent in zip(windows, tents, strict=True):
        total[window] += tent
    return [tent / total[window] for window, tent in zip(windows, tents, strict=True)]
