"""How far the outline of an object in an edited clip of the shapes world is from the true one."""

import numpy as np

from ivid2vid_jax.data.shapes.renderer import coverage
from ivid2vid_jax.data.shapes.scene import BACKGROUNDS, COLOURS, Spec


def contour_distance(edited: np.ndarray, spec: Spec) -> float | None:
    """Mean distance of the edited clip's contour to the true one, in pixels.

    A pixel belongs to the object if its colour is nearer to the object's than to the background's.
    The area between both contours, divided by the length of the true one, is their mean distance.

    Args:
        edited: [T, H, W, 3] uint8.
        spec: the true edit.

    Returns:
        The mean over all frames; None unless the true edit shows one plain object on a flat
        background, without a style, a disturbance or another exposure.
    """
    scene = spec.edited
    obj = scene.objects[0] if len(scene.objects) == 1 else None
    is_changed = scene.wave or scene.style or scene.disturbance or scene.exposure != 1
    if obj is None or obj.texture != "plain" or is_changed:
        return None
    truth = coverage(obj, spec.size, spec.frames)
    colour = np.asarray(COLOURS[obj.colour], np.float32)
    background = np.asarray(BACKGROUNDS[scene.background], np.float32)
    middle, way = (colour + background) / 2, colour - background
    shown = (edited.astype(np.float32) - middle) @ way > 0
    between = (shown != (truth > 0.5)).sum((1, 2))
    return float(np.mean(between / contour_length(truth)))


def contour_length(cover: np.ndarray) -> np.ndarray:
    """[T], the length of an object's contour in pixels: the total variation of its coverage."""
    down, right = np.gradient(cover, axis=(1, 2))
    return np.hypot(down, right).sum((1, 2))
