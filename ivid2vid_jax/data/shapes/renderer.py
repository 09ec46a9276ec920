"""Renders the shapes world, all frames of a clip at once; signed distances antialias the shapes.

Letters in names of arrays: T frames, H height, W width.
"""

import numpy as np

from ivid2vid_jax.data.shapes.disturbances import disturb, disturbed_pixels
from ivid2vid_jax.data.shapes.scene import (
    ALL_STYLES,
    BACKGROUNDS,
    COLOURS,
    LUMA,
    RADII,
    MotionPath,
    Object,
    Scene,
    Spec,
)

DARK = 0.5  # the second tone of a texture, as a share of the colour
TEXTURE_PERIOD = 0.125  # distance between two stripes or two dots, in frame sides
DOT_RADIUS = 0.33  # in texture periods
WAVE_PERIOD = 0.25  # of the background's waves, in frame sides
SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)
TINTS = {"warm": (255, 130, 0), "cool": (0, 110, 255)}
TINT = 0.35  # opacity of the tint
# Slope in grey levels per pixel at which an outline starts, and the further slope at which it is
# black.
OUTLINE_START, OUTLINE_RANGE = 20.0, 40.0


def render(scene: Scene, size: int, frames: int) -> np.ndarray:
    """Renders a scene to a clip, [frames, size, size, 3] uint8."""
    clip = to_uint8(scene.exposure * paint(scene, size, frames))
    clip = stylize(clip, scene.style) if scene.style else clip
    return disturb(clip, scene.disturbance) if scene.disturbance else clip


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Rounds and clips to uint8."""
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def paint(scene: Scene, size: int, frames: int) -> np.ndarray:
    """The scene in full light, without style and disturbance: [frames, size, size, 3] float32."""
    picture = paint_background(scene, size, frames)
    for obj in scene.objects:
        windows, alpha, tone = patches(obj, size, frames)
        transparency = 1 - alpha[..., None]
        colour = (alpha * tone)[..., None] * np.asarray(COLOURS[obj.colour], np.float32)
        for frame, window in enumerate(windows):
            picture[window] = transparency[frame] * picture[window] + colour[frame]
    return picture


def paint_background(scene: Scene, size: int, frames: int) -> np.ndarray:
    """The background with its waves: [frames, size, size, 3] float32."""
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    x_TW, y_TH = (
        2 * np.pi / WAVE_PERIOD * (pixels + pan * times(frames)[:, None]) for pan in scene.pan
    )
    wave_THW = scene.wave * np.sin(y_TH)[:, :, None] * np.sin(x_TW)[:, None, :]
    picture = np.empty((frames, size, size, 3), np.float32)
    for channel, level in enumerate(BACKGROUNDS[scene.background]):
        np.add(wave_THW, level, out=picture[..., channel], casting="same_kind")
    return picture


def coverage(obj: Object, size: int, frames: int) -> np.ndarray:
    """[frames, size, size] float32 in [0, 1]: the share of each pixel that the object covers."""
    cover = np.zeros((frames, size, size), np.float32)
    windows, alpha, _ = patches(obj, size, frames)
    for frame, window in enumerate(windows):
        cover[window] = alpha[frame]
    return cover


def patches(
    obj: Object, size: int, frames: int
) -> tuple[list[tuple[int, slice, slice]], np.ndarray, np.ndarray]:
    """Renders an object in a window around it.

    Returns:
        One window per frame, as an index into [T, H, W]; the object's alpha and tone in these
        windows, [T, w, w] in [0, 1].
    """
    radius = RADII[obj.size] * size
    centres = positions(obj.path, frames) * size
    width = min(size, 2 * int(np.ceil(radius)) + 3)
    corners = np.clip(np.floor(centres - width / 2 + 0.5).astype(int), 0, size - width)
    offsets = corners[:, None] + np.arange(width)[:, None] + 0.5 - centres[:, None]
    x, y = offsets[:, None, :, 0].astype(np.float32), offsets[:, :, None, 1].astype(np.float32)
    alpha = np.clip(0.5 - DISTANCES[obj.shape](x, y, radius), 0, 1)
    windows = [
        (frame, slice(top, top + width), slice(left, left + width))
        for frame, (left, top) in enumerate(corners.tolist())
    ]
    tone = 1 - (1 - DARK) * darkness(obj.texture, x, y, TEXTURE_PERIOD * size)
    return windows, alpha, tone


def times(frames: int) -> np.ndarray:
    """[frames] float32 from 0 to 1; a single frame is at 0."""
    return np.linspace(0, 1, frames, dtype=np.float32)


def positions(path: MotionPath, frames: int) -> np.ndarray:
    """[frames, 2]: (x, y) of an object's centre in frame sides."""
    t = times(frames)[:, None]
    start, via, end = np.asarray((path.start, path.via, path.end))
    bezier = (1 - t) ** 2 * start + 2 * t * (1 - t) * via + t**2 * end
    reflected = 1 - np.abs(1 - np.mod(bezier, 2))
    low, high = np.asarray(path.box).reshape(2, 2)
    return low + reflected * (high - low)


# ---- signed distances of the shapes in pixels, negative inside; r: half of the width ----


def circle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """A disc."""
    return np.hypot(x, y) - r


def square(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Half of a side is 0.89 r."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.89 * r


def triangle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Corners at (0, -r) and (+-r, 0.75 r), y downward."""
    return np.maximum(y - 0.75 * r, (1.75 * np.abs(x) - y - r) / np.hypot(1.75, 1))


def cross(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Two bars, 0.66 r wide."""
    length = np.maximum(np.abs(x), np.abs(y)) - r
    width = np.minimum(np.abs(x), np.abs(y)) - 0.33 * r
    return np.maximum(length, width)


def star(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Five points, the first one upward, and inner corners at 0.45 r.

    All angles are reflected into one half of a point.
    """
    half = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + half, 2 * half) - half)
    length = np.hypot(x, y)
    inner_x, inner_y = 0.45 * np.cos(half), 0.45 * np.sin(half)
    edge = np.hypot(1 - inner_x, inner_y)
    return ((length * np.cos(angle) - r) * inner_y + length * np.sin(angle) * (1 - inner_x)) / edge


DISTANCES = {"circle": circle, "square": square, "triangle": triangle, "cross": cross, "star": star}


def darkness(texture: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Where a texture has its second tone, in [0, 1]; [T, h, w] or a shape that broadcasts to it.

    The object's centre is in a dot, or between two stripes.

    Args:
        texture: one of TEXTURES.
        x: pixels from the object's centre.
        y: pixels from the object's centre.
        period: of the texture in pixels.
    """
    if texture == "plain":
        return np.zeros_like(x)
    x, y = (np.abs(np.mod(offset + period / 2, period) - period / 2) for offset in (x, y))
    distance = period / 4 - x if texture == "striped" else np.hypot(x, y) - DOT_RADIUS * period
    return np.clip(0.5 - distance, 0, 1)


def stylize(clip: np.ndarray, style: str) -> np.ndarray:
    """Applies one of ALL_STYLES to [T, H, W, 3] uint8.

    For "pixelated", H and W are multiples of 8.
    """
    if style == "negative":
        return 255 - clip
    picture = clip.astype(np.float32)
    if style == "grey":
        luma = picture @ np.asarray(LUMA, np.float32)
        return to_uint8(np.repeat(luma[..., None], 3, axis=-1))
    if style == "sepia":
        return to_uint8(picture @ SEPIA.T)
    if style in TINTS:
        return to_uint8(picture + TINT * (np.asarray(TINTS[style], np.float32) - picture))
    return to_uint8(pixelated(picture) if style == "pixelated" else outlined(picture))


def pixelated(picture: np.ndarray) -> np.ndarray:
    """The mean colours of 8 x 8 blocks."""
    T, H, W, _ = picture.shape
    blocks = picture.reshape(T, 8, H // 8, 8, W // 8, 3).mean((2, 4))
    return blocks.repeat(H // 8, 1).repeat(W // 8, 2)


def outlined(picture: np.ndarray) -> np.ndarray:
    """Dark lines on white where any channel changes fast from one pixel to the next."""
    slope = np.zeros(picture.shape[:3], np.float32)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:, :, :-1], np.s_[:, :, 1:])):
        difference = largest_channel(np.abs(picture[second] - picture[first]))
        for side in (first, second):
            np.maximum(slope[side], difference, out=slope[side])
    line = np.clip((slope - OUTLINE_START) / OUTLINE_RANGE, 0, 1)
    return np.repeat((250 - 225 * line)[..., None], 3, axis=-1)


def largest_channel(picture: np.ndarray) -> np.ndarray:
    """[..., 3] -> [...]; several times faster than `max` over so short an axis."""
    return np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2])


def edit_mask(spec: Spec) -> np.ndarray | None:
    """[T, H, W] bool, the pixels that the edit may change.

    An object's edit may change its pixels before and after, a background's edit all pixels outside
    objects, the removal of a disturbance what it hides, "identity" nothing. None, for a style,
    means all pixels.
    """
    edit, scene, edited, shape = spec.edit, spec.scene, spec.edited, (spec.size, spec.frames)
    if edit.kind in ALL_STYLES:
        return None
    if scene.disturbance and not edited.disturbance:
        return disturbed_pixels(scene.disturbance, *shape)
    if edited.background != scene.background:
        mask = np.maximum.reduce([coverage(obj, *shape) for obj in scene.objects]) < 1
    else:
        mask = np.zeros((spec.frames, spec.size, spec.size), bool)
        for obj in set(scene.objects) ^ set(edited.objects):
            mask |= coverage(obj, *shape) > 0
    if edited.disturbance:
        mask &= ~disturbed_pixels(edited.disturbance, *shape)
    return mask
