"""Draws the shapes world: signed distances make antialiased shapes, whole clips at a time."""

import numpy as np

from ivid2vid_jax.data.shapes.scene import (
    ALL_STYLES,
    BACKGROUNDS,
    COLOURS,
    LUMA,
    RADII,
    Object,
    Path,
    Scene,
    Spec,
)

DARK = 0.5  # the second tone of a texture, as a share of the colour
LATTICE = 0.125  # distance between two stripes or two dots, in frame sides
DOT = 0.33  # a dot's radius, in lattice steps
WAVE_PERIOD = 0.25  # of the background's unevenness, in frame sides
SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)
TINTS = {"warm": (255, 130, 0), "cool": (0, 110, 255)}
TINT = 0.35  # the tint's share of the picture
LINE = (
    20.0,
    40.0,
)  # grey levels per pixel at which an outline begins, and over how many more it becomes black


def render(scene: Scene, size: int, frames: int) -> np.ndarray:
    """The scene as a clip: [frames, size, size, 3] uint8."""
    clip = to_uint8(paint(scene, size, frames))
    return stylize(clip, scene.style) if scene.style else clip


def to_uint8(picture: np.ndarray) -> np.ndarray:
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def paint(scene: Scene, size: int, frames: int) -> np.ndarray:
    """The scene without its style: [frames, size, size, 3] float32 in [0, 255]."""
    picture = paint_background(scene, size, frames)
    for thing in scene.objects:
        windows, alpha, tone = patches(thing, size, frames)
        keep, ink = (
            1 - alpha[..., None],
            (alpha * tone)[..., None] * np.float32(COLOURS[thing.colour]),
        )
        for frame, window in enumerate(windows):
            picture[window] = keep[frame] * picture[window] + ink[frame]
    return picture


def paint_background(scene: Scene, size: int, frames: int) -> np.ndarray:
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    x_TW, y_TH = (
        2 * np.pi / WAVE_PERIOD * (pixels + pan * times(frames)[:, None]) for pan in scene.pan
    )
    wave_THW = scene.wave * np.sin(y_TH)[:, :, None] * np.sin(x_TW)[:, None, :]
    picture = np.empty((frames, size, size, 3), np.float32)
    for channel, level in enumerate(BACKGROUNDS[scene.background]):
        np.add(wave_THW, level, out=picture[..., channel], casting="same_kind")
    return picture


def coverage(thing: Object, size: int, frames: int) -> np.ndarray:
    """[frames, size, size] float32 in [0, 1]: the share of each pixel that the object covers."""
    cover = np.zeros((frames, size, size), np.float32)
    windows, alpha, _ = patches(thing, size, frames)
    for frame, window in enumerate(windows):
        cover[window] = alpha[frame]
    return cover


def patches(thing: Object, size: int, frames: int):
    """One window around the object per frame, as indices into [T, H, W], and its alpha and tone there, [T, w, w] in [0, 1]."""
    radius = RADII[thing.size] * size
    centres = positions(thing.path, frames) * size
    width = min(size, 2 * int(np.ceil(radius)) + 3)
    corners = np.clip(np.floor(centres - width / 2 + 0.5).astype(int), 0, size - width)
    offsets = corners[:, None] + np.arange(width)[:, None] + 0.5 - centres[:, None]
    x, y = offsets[:, None, :, 0].astype(np.float32), offsets[:, :, None, 1].astype(np.float32)
    alpha = np.clip(0.5 - DISTANCES[thing.shape](x, y, radius), 0, 1)
    windows = [
        (frame, slice(top, top + width), slice(left, left + width))
        for frame, (left, top) in enumerate(corners.tolist())
    ]
    return windows, alpha, 1 - (1 - DARK) * darkness(thing.texture, x, y, LATTICE * size)


def times(frames: int) -> np.ndarray:
    """[frames] float32 from 0 to 1; a single frame is at 0."""
    return np.linspace(0, 1, frames, dtype=np.float32)


def positions(path: Path, frames: int) -> np.ndarray:
    """[frames, 2] (x, y) of the centre in frame sides."""
    t = times(frames)[:, None]
    start, via, end = np.asarray((path.start, path.via, path.end))
    free = (1 - t) ** 2 * start + 2 * t * (1 - t) * via + t**2 * end
    folded = 1 - np.abs(1 - np.mod(free, 2))
    low, high = np.asarray(path.box).reshape(2, 2)
    return low + folded * (high - low)


def circle(x, y, r):
    return np.hypot(x, y) - r


def square(x, y, r):
    return np.maximum(np.abs(x), np.abs(y)) - 0.89 * r


def triangle(x, y, r):
    """Corners at (0, -r) and (+-r, 0.75 r), y downward."""
    return np.maximum(y - 0.75 * r, (1.75 * np.abs(x) - y - r) / np.hypot(1.75, 1))


def cross(x, y, r):
    long, short = np.maximum(np.abs(x), np.abs(y)) - r, np.minimum(np.abs(x), np.abs(y)) - 0.33 * r
    return np.maximum(long, short)


def star(x, y, r):
    """Five points, the first upward; the inner corners at 0.45 r. The angle is folded into one half of a point."""
    half = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + half, 2 * half) - half)
    length = np.hypot(x, y)
    inner_x, inner_y = 0.45 * np.cos(half), 0.45 * np.sin(half)
    edge = np.hypot(1 - inner_x, inner_y)
    return ((length * np.cos(angle) - r) * inner_y + length * np.sin(angle) * (1 - inner_x)) / edge


DISTANCES = {"circle": circle, "square": square, "triangle": triangle, "cross": cross, "star": star}


def darkness(texture: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """[T, h, w] or what broadcasts to it, in [0, 1]: where the texture has its second tone. period: pixels; a dot, or the gap
    between two stripes, is central.
    """
    if texture == "plain":
        return np.zeros_like(x)
    x, y = (np.abs(np.mod(each + period / 2, period) - period / 2) for each in (x, y))
    distance = period / 4 - x if texture == "striped" else np.hypot(x, y) - DOT * period
    return np.clip(0.5 - distance, 0, 1)


def stylize(clip: np.ndarray, style: str) -> np.ndarray:
    """[T, H, W, 3] uint8 -> the same in one of ALL_STYLES; H and W multiples of 8 for "pixelated"."""
    if style == "negative":
        return 255 - clip
    picture = clip.astype(np.float32)
    if style == "grey":
        return to_uint8(np.repeat((picture @ np.float32(LUMA))[..., None], 3, axis=-1))
    if style == "sepia":
        return to_uint8(picture @ SEPIA.T)
    if style in TINTS:
        return to_uint8(picture + TINT * (np.float32(TINTS[style]) - picture))
    return to_uint8(pixelated(picture) if style == "pixelated" else outlined(picture))


def pixelated(picture: np.ndarray) -> np.ndarray:
    """8 x 8 blocks of one colour each."""
    T, H, W, _ = picture.shape
    blocks = picture.reshape(T, 8, H // 8, 8, W // 8, 3).mean((2, 4))
    return blocks.repeat(H // 8, 1).repeat(W // 8, 2)


def outlined(picture: np.ndarray) -> np.ndarray:
    """Dark lines on white where any channel changes by more than LINE from one pixel to the next."""
    slope = np.zeros(picture.shape[:3], np.float32)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:, :, :-1], np.s_[:, :, 1:])):
        step = largest_channel(np.abs(picture[there] - picture[here]))
        for side in (here, there):
            np.maximum(slope[side], step, out=slope[side])
    line = np.clip((slope - LINE[0]) / LINE[1], 0, 1)
    return np.repeat((250 - 225 * line)[..., None], 3, axis=-1)


def largest_channel(picture: np.ndarray) -> np.ndarray:
    """[..., 3] -> [...]; several times faster than a reduction over so short an axis."""
    return np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2])


def edit_mask(spec: Spec) -> np.ndarray | None:
    """[T, H, W] bool, the pixels that the edit may change: the object it speaks of, before and after; all that is not an object for a
    background; nothing for "identity"; None, that is all of them, for a style.
    """
    edit, scene, frames = spec.edit, spec.scene, (spec.size, spec.frames)
    if edit.kind in ALL_STYLES:
        return None
    if edit.kind == "identity":
        return np.zeros((spec.frames, spec.size, spec.size), bool)
    if edit.kind == "background":
        return np.maximum.reduce([coverage(each, *frames) for each in scene.objects]) < 1
    changed = set(scene.objects) ^ set(spec.edited.objects)
    return np.maximum.reduce([coverage(each, *frames) for each in changed]) > 0
