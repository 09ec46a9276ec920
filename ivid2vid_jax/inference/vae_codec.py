"""Frames <-> latents through the autoencoder, in chunks and tiles, so that memory depends on neither length nor size."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.models import AutoencoderConfig, AutoencoderKL
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.device_group import FRAMES_AXIS, DeviceGroup

CHUNK_PIXELS = 2**20  # pixels that go through the autoencoder at once: 16 frames of 256x256
TILE = 512  # pixels a side of one tile
TILED_ABOVE = 768 * 768  # pixels of a frame from which it is cut into tiles
OVERLAP = 128  # pixels shared by neighbouring tiles, blended linearly


class VAECodec:
    """Encodes and decodes streams of frames, in chunks of at most five sizes, so few programs serve every length; spread: over these devices."""

    def __init__(self, config: AutoencoderConfig, dtype: Any, spread: DeviceGroup | None = None):
        self.spread = spread or DeviceGroup(1)
        vae = AutoencoderKL(config, dtype)
        self.downscale = config.downscale

        def encode(params, pixels_u8):
            pixels = pixels_u8.astype(jnp.float32) / 127.5 - 1.0
            return vae.apply({"params": params}, pixels, method=vae.encode).mode()

        def decode(params, latents):
            pixels = vae.apply({"params": params}, latents, method=vae.decode)
            return jnp.clip((pixels + 1.0) * 127.5, 0.0, 255.0)

        self._encode, self._decode = self.spread.jit(encode), self.spread.jit(decode)

    def encode(self, params: Any, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Posterior modes [T, H/f, W/f, C] float32, unscaled, of frames [H, W, 3] uint8, all of one size."""
        out = []
        for chunk, used in chunks(frames, lambda frame: frame.shape[0] * frame.shape[1]):
            out.append(
                self.tiled(lambda tile: self._encode(params, tile), chunk, self.downscale, 1)[:used]
            )
            runtime.trim_host_memory()
        return np.concatenate(out)

    def decode(self, params: Any, latents: np.ndarray) -> Iterator[np.ndarray]:
        """Frames [H, W, 3] uint8, one by one, of latents [T, h, w, C], unscaled."""
        for chunk, used in chunks(
            latents, lambda frame: frame.shape[0] * frame.shape[1] * self.downscale**2
        ):
            pixels = self.tiled(lambda tile: self._decode(params, tile), chunk, 1, self.downscale)
            yield from np.round(pixels[:used]).astype(np.uint8)
            runtime.trim_host_memory()

    def tiled(self, run, chunk: np.ndarray, cells_in: int, cells_out: int) -> np.ndarray:
        """`run` on a chunk [N, H, W, C], tile by tile where its frames are large; tiles are blended where they overlap.

        cells_in, cells_out: cells of the chunk and of the result a latent, each way.
        """
        f = self.downscale
        h, w = chunk.shape[1] // cells_in, chunk.shape[2] // cells_in
        if h * w * f**2 <= TILED_ABOVE:
            return jax.device_get(run(self.spread.put(chunk, FRAMES_AXIS)))
        out = total = 0.0
        for y in spans(h, TILE // f, OVERLAP // f):
            for x in spans(w, TILE // f, OVERLAP // f):
                part = jax.device_get(
                    run(
                        self.spread.put(
                            chunk[:, scaled(y, cells_in), scaled(x, cells_in)], FRAMES_AXIS
                        )
                    )
                )
                if isinstance(out, float):
                    out = np.zeros(
                        (len(chunk), h * cells_out, w * cells_out, part.shape[-1]), np.float32
                    )
                    total = np.zeros((1, *out.shape[1:3], 1), np.float32)
                place = (slice(None), scaled(y, cells_out), scaled(x, cells_out))
                ramp = OVERLAP // f * cells_out
                weight = np.outer(taper(part.shape[1], ramp), taper(part.shape[2], ramp))[
                    None, :, :, None
                ]
                out[place] += part * weight
                total[place] += weight
        return out / total


def chunks(frames: Iterable[np.ndarray], pixels) -> Iterator[tuple[np.ndarray, int]]:
    """(stacked frames, how many of them count): as many frames at once as CHUNK_PIXELS allow, at most 16.

    The last chunk is filled up to a power of two by repeating its last frame.
    """
    frames = iter(frames)
    first = next(frames)
    most = 2 ** int(np.log2(np.clip(CHUNK_PIXELS // pixels(first), 1, 16)))
    frames = chain([first], frames)
    while group := list(islice(frames, most)):
        filled = 2 ** (len(group) - 1).bit_length()
        yield np.stack([*group, *[group[-1]] * (filled - len(group))]), len(group)


def spans(length: int, tile: int, overlap: int) -> list[slice]:
    """Slices of `tile` cells that cover `length`, neighbours sharing at least `overlap`; one slice where it is not longer."""
    if length <= tile:
        return [slice(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    return [
        slice(start, start + tile)
        for start in np.linspace(0, length - tile, count).round().astype(int)
    ]


def scaled(span: slice, cells: int) -> slice:
    return slice(span.start * cells, span.stop * cells)


def taper(length: int, ramp: int) -> np.ndarray:
    """Weights [length] of a tile's cells: 1 inside, falling linearly, never to 0, over `ramp` cells at both ends."""
    edge = (np.arange(length) + 1) / (ramp + 1)
    return np.minimum(1.0, np.minimum(edge, edge[::-1])).astype(np.float32)
