"""Edits a clip by an instruction, with weights exported by ivid2vid_jax.

It needs torch, diffusers, transformers and Pillow, and av to read video files.

from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
edited = pipe("clip.mp4", "make it snow")      # uint8 [T, H, W, 3]
"""

import inspect
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}

IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,avi,dv,flv,h264,hevc,ivf,m4v,mpeg,mpegts,mpegvideo,"
    "mxf,nut,obu,ogg,yuv4mpegpipe"
)


class InstructVid2VidPipeline(DiffusionPipeline):
    """The pipeline of an exported folder.

    unet predicts the noise of a clip from [B, 2C, T, h, w]: noisy latents, then those of the source
    clip. The arguments after the modules are the defaults of a call.
    """

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        steps: int = 50,
        text_scale: float = 7.5,
        video_scale: float = 1.5,
        sampler: str = "ddim",
        size: int = 256,
        frames: int = 16,
        shared_noise: float = 0.0,
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(
            steps=steps,
            text_scale=text_scale,
            video_scale=video_scale,
            sampler=sampler,
            size=size,
            frames=frames,
            shared_noise=shared_noise,
        )

    @torch.no_grad()
    def __call__(
        self,
        video,
        instruction: str,
        negative: str = "",
        steps: int | None = None,
        text_scale: float | None = None,
        video_scale: float | None = None,
        size: int | None = None,
        frames: int | None = None,
        seed: int = 0,
        noise: torch.Tensor | None = None,
        shared_noise: float | None = None,
    ):
        """Edits a clip; None takes the folder's default.

        Args:
            video: a file, uint8 [T, H, W, 3], or a list of PIL images.
            instruction: what to change.
            negative: negative instruction, instead of the empty one.
            steps: sampler steps.
            text_scale: guidance towards the instruction.
            video_scale: guidance towards the source clip.
            size: pixels of the longer side inside the model.
            frames: frames of one window.
            seed: seed of the noise.
            noise: initial unit noise [1, C, T, h, w], instead of the seed's.
            shared_noise: share of the initial noise that all frames have in common, 0 to 1.

        Returns:
            uint8 [T, H, W, 3] of the video's size.
        """
        defaults = self.config
        text_scale = defaults.text_scale if text_scale is None else text_scale
        video_scale = defaults.video_scale if video_scale is None else video_scale
        shared_noise = defaults.shared_noise if shared_noise is None else shared_noise
        if self.unet.config.in_channels != 2 * self.vae.config.latent_channels:
            raise ValueError(
                f"this U-Net takes {self.unet.config.in_channels} latent channels and no source "
                "clip, so it edits nothing"
            )

        clip = read_video(video)
        fit = ResizeAndPad(clip.shape[1:3], size or defaults.size, self.factor)
        source = self.encode(np.stack([fit.apply(frame) for frame in clip]))
        text = self.encode_text([negative, negative, instruction])
        generator = torch.Generator().manual_seed(seed)
        if noise is None:
            noise = unit_noise(source.shape, shared_noise, generator)
        scales = [1 - video_scale, video_scale - text_scale, text_scale]
        windows = plan_windows(len(clip), frames or defaults.frames)
        latents = self.sample(
            source, text, noise, scales, windows, steps or defaults.steps, generator
        )
        latents = latents / self.vae.config.scaling_factor
        return np.stack([fit.restore(frame) for frame in self.decode(latents)])

    @property
    def factor(self) -> int:
        """Height and width of the frames inside the model are multiples of this."""
        return 2 ** (
            len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2
        )

    def sample(self, source, text, noise, scales, windows, steps, generator):
        """Sampling loop over windows: unit noise [1, C, T, h, w] -> scaled latents.

        source: latents of the source clip [1, C, T, h, w]; text: [3, K, D]; scales: weights of the
        three guidance branches.
        """
        scheduler = SCHEDULERS[self.config.sampler].from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if takes_generator else {}
        x = noise.to(self.device, torch.float32) * scheduler.init_noise_sigma
        guidance = torch.tensor(scales, device=self.device).reshape(3, 1, 1, 1, 1)
        weights = blend_weights(windows, x.shape[2])
        for t in self.progress_bar(scheduler.timesteps):
            noisy, prediction = scheduler.scale_model_input(x, t), torch.zeros_like(x)
            for window, weight in zip(windows, weights, strict=True):
                branches = self.branches(noisy[:, :, window], source[:, :, window], t, text)
                guided = (guidance * branches).sum(0, keepdim=True)
                weight = torch.as_tensor(weight, device=self.device)
                prediction[:, :, window] += guided * weight[:, None, None]
            x = scheduler.step(prediction, t, x, **options).prev_sample
        return x

    def branches(self, x, source, t, text):
        """Predictions [3, C, T, h, w], float32: unconditional, of the clip, of clip and text."""
        sources = torch.cat([torch.zeros_like(source), source, source])
        x = torch.cat([x.repeat(3, 1, 1, 1, 1), sources], dim=1).to(self.unet.dtype)
        if type(self.unet).__name__ == "UNetMotionModel":  # it takes the text once per frame
            text = text.repeat_interleave(x.shape[2], dim=0)
        return self.unet(x, t, text).sample.float()

    def encode_text(self, texts):
        """Texts -> embeddings [N, K, D]."""
        ids = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(self.device))[0].to(self.unet.dtype)

    def encode(self, clip):
        """uint8 [T, H, W, 3] -> posterior modes [1, C, T, h, w], unscaled, float32."""
        pixels = torch.from_numpy(clip).movedim(-1, 1).to(self.device, torch.float32) / 127.5 - 1
        modes = [
            self.vae.encode(frame.to(self.vae.dtype)).latent_dist.mode()
            for frame in pixels.split(1)
        ]
        return torch.cat(modes).float().transpose(0, 1)[None]

    def decode(self, latents):
        """Unscaled latents [1, C, T, h, w] -> uint8 frames [H, W, 3], one by one."""
        for frame in latents[0].transpose(0, 1).split(1):
            pixels = (self.vae.decode(frame.to(self.vae.dtype)).sample[0].float() + 1) * 127.5
            yield pixels.clamp(0, 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()


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


def unit_noise(shape, shared, generator):
    """Unit noise [B, C, T, h, w]; `shared` is the share of variance that all frames have."""
    independent = torch.randn(shape, generator=generator)
    common = torch.randn((*shape[:2], 1, *shape[3:]), generator=generator)
    return (1 - shared) ** 0.5 * independent + shared**0.5 * common


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


def read_video(video):
    """A file, an array or a list of PIL images as uint8 [T, H, W, 3]."""
    if isinstance(video, np.ndarray):
        return video
    if isinstance(video, list | tuple):
        return np.stack([np.asarray(image.convert("RGB")) for image in video])
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        with Image.open(video, formats=formats) as image:
            still = image.format in ("JPEG", "MPO")
            pictures = [image] if still else ImageSequence.Iterator(image)
            return np.stack([image_pixels(picture) for picture in pictures])
    except UnidentifiedImageError:
        return np.stack(list(video_pixels(video)))


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
