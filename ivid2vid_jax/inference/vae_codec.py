"""Frames <-> latents through the autoencoder, in chunks and tiles.

Device memory depends neither on the clip's length nor on its size.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.models import AutoencoderConfig, AutoencoderKL
from ivid2vid_jax.models.autoencoder import to_pixels
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.device_group import FRAMES_AXIS, DeviceGroup

CHUNK_PIXELS = 2**20  # pixels of one chunk: 16 frames of 256x256
MAX_CHUNK_FRAMES = 16
TILE = 512  # height and width of a tile in pixels
TILED_ABOVE = 768 * 768  # frames of more pixels are split into tiles
OVERLAP = 128  # pixels shared by neighbouring tiles, blended linearly


class VAECodec:
    """Encodes and decodes streams of frames.

    Chunks have at most five lengths, so few compiled programs serve every clip.

    Args:
        config: the autoencoder's config.
        dtype: dtype of the computation.
        devices: the devices that share a chunk; None for one.
    """

    def __init__(self, config: AutoencoderConfig, dtype: Any, devices: DeviceGroup | None = None):
        self.devices = devices or DeviceGroup(1)
        vae = AutoencoderKL(config, dtype)
        self.downscale = config.downscale

        def encode(params, pixels_u8):
            pixels = to_pixels(pixels_u8, dtype)
            return vae.apply({"params": params}, pixels, method=vae.encode).mode()

        def decode(params, latents):
            pixels = vae.apply({"params": params}, latents, method=vae.decode)
            return jnp.clip((pixels + 1.0) * 127.5, 0.0, 255.0)

        self._encode, self._decode = self.devices.jit(encode), self.devices.jit(decode)

    def encode(self, params: Any, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Encodes frames [H, W, 3] uint8 of one size to posterior modes [T, H/f, W/f, C].

        The modes are float32, unscaled.
        """
        latents = []
        for chunk, length in padded_chunks(frames, lambda frame: frame.shape[0] * frame.shape[1]):
            modes = self.tiled(lambda tile: self._encode(params, tile), chunk, self.downscale, 1)
            latents.append(modes[:length])
            runtime.trim_host_memory()
        return np.concatenate(latents)

    def decode(self, params: Any, latents: np.ndarray) -> Iterator[np.ndarray]:
        """Decodes unscaled latents [T, h, w, C] to frames [H, W, 3] uint8, one by one."""
        for chunk, length in padded_chunks(
            latents, lambda frame: frame.shape[0] * frame.shape[1] * self.downscale**2
        ):
            pixels = self.tiled(lambda tile: self._decode(params, tile), chunk, 1, self.downscale)
            yield from np.round(pixels[:length]).astype(np.uint8)
            runtime.trim_host_memory()

    def tiled(
        self, function: Callable, chunk: np.ndarray, in_scale: int, out_scale: int
    ) -> np.ndarray:
        """Applies a function to a chunk [N, H, W, C], tile by tile if its frames are large.

        Tiles are blended where they overlap.

        Args:
            function: tile on the device -> result.
            chunk: pixels or latents.
            in_scale: height of one latent in cells of the chunk: 1 for latents, f for pixels.
            out_scale: the same for the result.
        """
        f = self.downscale
        h, w = chunk.shape[1] // in_scale, chunk.shape[2] // in_scale
        if h * w * f**2 <= TILED_ABOVE:
            return jax.device_get(function(self.devices.put(chunk, FRAMES_AXIS)))
        output = weight_sum = None
        ramp = OVERLAP // f * out_scale
        for y in spans(h, TILE // f, OVERLAP // f):
            for x in spans(w, TILE // f, OVERLAP // f):
                tile = chunk[:, scale_slice(y, in_scale), scale_slice(x, in_scale)]
                result = jax.device_get(function(self.devices.put(tile, FRAMES_AXIS)))
                if output is None or weight_sum is None:
                    H, W = h * out_scale, w * out_scale
                    output = np.zeros((len(chunk), H, W, result.shape[-1]), np.float32)
                    weight_sum = np.zeros((1, H, W, 1), np.float32)
                region = (slice(None), scale_slice(y, out_scale), scale_slice(x, out_scale))
                weight = np.outer(taper(result.shape[1], ramp), taper(result.shape[2], ramp))
                output[region] += result * weight[None, :, :, None]
                weight_sum[region] += weight[None, :, :, None]
        assert output is not None and weight_sum is not None
        return output / weight_sum


def padded_chunks(
    frames: Iterable[np.ndarray], count_pixels: Callable[[np.ndarray], int]
) -> Iterator[tuple[np.ndarray, int]]:
    """Stacks frames into chunks of as many as CHUNK_PIXELS allows, at most MAX_CHUNK_FRAMES.

    Yields (chunk, number of its frames that count): the last chunk is padded to a power of two by
    repeating its last frame. count_pixels: pixels of a frame.
    """
    frames = iter(frames)
    first = next(frames)
    limit = np.clip(CHUNK_PIXELS // count_pixels(first), 1, MAX_CHUNK_FRAMES)
    chunk_length = 2 ** int(np.log2(limit))
    frames = chain([first], frames)
    while group := list(islice(frames, chunk_length)):
        padded_length = 2 ** (len(group) - 1).bit_length()
        yield np.stack([*group, *[group[-1]] * (padded_length - len(group))]), len(group)


def spans(length: int, tile: int, overlap: int) -> list[slice]:
    """Slices of `tile` cells that cover `length`, neighbours sharing at least `overlap` cells.

    One slice if `length` is at most `tile`.
    """
    if length <= tile:
        return [slice(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    return [
        slice(start, start + tile)
        for start in np.linspace(0, length - tile, count).round().astype(int)
    ]


def scale_slice(span: slice, scale: int) -> slice:
    """The slice with both ends multiplied by `scale`."""
    return slice(span.start * scale, span.stop * scale)


def taper(length: int, ramp: int) -> np.ndarray:
    """Blending weights [length]: 1 inside, falling linearly over `ramp` cells at both ends."""
    edge = (np.arange(length) + 1) / (ramp + 1)
    return np.minimum(1.0, np.minimum(edge, edge[::-1])).astype(np.float32)
