"""Disturbances of a clip: a bar that crosses the picture, lost frames, flicker."""

import numpy as np

from ivid2vid_jax.data.shapes.scene import Disturbance

BAR_COLOUR = (250, 140, 40)  # orange: no object and no background has it
BAR_WIDTH = 0.26  # in frame sides: it hides a small object
LOST = 0.25  # share of the frames that "black" and "noise" replace
FLICKERING = 0.375  # share of the frames that flicker
# factors of frames that flicker
DARKER, BRIGHTER = (0.6, 0.75), (1.18, 1.3)
# range of `Scene.exposure` in a flickering scene: the brightest frame does not clip
EXPOSURES = (0.55, 0.76)


def disturb(clip: np.ndarray, disturbance: Disturbance) -> np.ndarray:
    """Applies a disturbance to [T, H, W, 3] uint8; returns a new clip."""
    frames, size = clip.shape[:2]
    if disturbance.kind == "flicker":
        gains = flicker_gains(disturbance, frames)[:, None, None, None]
        return np.clip(clip * gains + 0.5, 0, 255).astype(np.uint8)
    if disturbance.kind == "bar":
        alpha = bar_alpha(disturbance, size, frames)[..., None]
        blended = clip + alpha * (np.asarray(BAR_COLOUR, np.float32) - clip)
        return (blended + 0.5).astype(np.uint8)
    clip = clip.copy()
    lost = lost_frames(disturbance, frames)
    if disturbance.kind == "noise":
        rng = np.random.default_rng([disturbance.seed, 1])
        clip[lost] = rng.integers(0, 256, clip[lost].shape, np.uint8)
    else:
        clip[lost] = 0
    return clip


def disturbed_pixels(disturbance: Disturbance, size: int, frames: int) -> np.ndarray:
    """[frames, size, size] bool: the pixels that the disturbance changes."""
    if disturbance.kind == "bar":
        return bar_alpha(disturbance, size, frames) > 0
    if disturbance.kind == "flicker":
        changed = flicker_gains(disturbance, frames) != 1
    else:
        changed = lost_frames(disturbance, frames)
    return np.broadcast_to(changed[:, None, None], (frames, size, size)).copy()


def bar_alpha(disturbance: Disturbance, size: int, frames: int) -> np.ndarray:
    """[frames, size, size] float32: opacity of a bar that crosses the picture over the clip."""
    rng = np.random.default_rng(disturbance.seed)
    upright, backward = rng.integers(2, size=2)
    margin = BAR_WIDTH / 2 + rng.uniform(0, 0.1)
    centres = np.linspace(-margin, 1 + margin, frames, dtype=np.float32)
    if backward:
        centres = centres[::-1]
    pixels = np.arange(size, dtype=np.float32) + 0.5
    distance = np.abs(pixels - size * centres[:, None]) - size * BAR_WIDTH / 2
    profile = np.clip(0.5 - distance, 0, 1)
    profile = profile[:, None, :] if upright else profile[:, :, None]
    return np.broadcast_to(profile, (frames, size, size))


def lost_frames(disturbance: Disturbance, frames: int) -> np.ndarray:
    """[frames] bool: lost frames, neither the first nor the last, and no two in a row."""
    return scattered(np.random.default_rng(disturbance.seed), frames, LOST)


def flicker_gains(disturbance: Disturbance, frames: int) -> np.ndarray:
    """[frames] float32: the factor on each frame, 1 for most."""
    rng = np.random.default_rng(disturbance.seed)
    flickers = rng.permutation(frames) < int(frames * FLICKERING)
    ranges = np.where(rng.integers(2, size=frames)[:, None], DARKER, BRIGHTER)
    return np.where(flickers, rng.uniform(*ranges.T), 1).astype(np.float32)


def scattered(rng: np.random.Generator, frames: int, share: float) -> np.ndarray:
    """[frames] bool: a share of the inner frames, at least one if there is any, none adjacent."""
    chosen = np.zeros(frames + 1, bool)
    count = max(1, int(frames * share))
    for frame in rng.permutation(np.arange(1, max(frames - 1, 1))):
        if chosen.sum() < count and not chosen[frame - 1] and not chosen[frame + 1]:
            chosen[frame] = True
    return chosen[:frames]
