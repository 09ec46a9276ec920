"""Samples scenes and edits at random, for a training and an evaluation split.

One in ten combinations of (shape, colour, background, kind, phrasing) is held out: "train" never
contains them, "eval" contains nothing else. Shape and colour are those of the object that the
instruction mentions, or of the first object if it mentions none; the background is the source's.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from ivid2vid_jax.data.shapes.disturbances import EXPOSURES
from ivid2vid_jax.data.shapes.language import PHRASINGS, subject
from ivid2vid_jax.data.shapes.scene import (
    ALL_KINDS,
    BACKGROUNDS,
    BASE_KINDS,
    COLOURS,
    CROWDED_KINDS,
    FREE_KINDS,
    KINDS,
    PLACES,
    RADII,
    SHAPES,
    TEXTURES,
    WAVE,
    Disturbance,
    Edit,
    MotionPath,
    Object,
    Scene,
    Spec,
    contrasts,
)
from ivid2vid_jax.errors import UserError

# One object or two, some of them textured; backgrounds with waves, half of which pan.
CROWDED = "shapes-crowded"
# Name -> kinds of edit. "shapes" has one plain object (two for "remove") on a flat background.
WORLDS = {"shapes": KINDS, CROWDED: CROWDED_KINDS}
SPLITS = ("train", "eval")
HELD_OUT = 10  # one combination in ten
Box = tuple[float, float, float, float]  # (x0, y0, x1, y1) in frame sides
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
HALVES: dict[str, Box] = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
# The disturbances that a kind of edit meets.
DISTURBANCES = {
    "remove-bar": ("bar",),
    "hidden-colour": ("bar",),
    "repair-frames": ("black", "noise"),
    "remove-flicker": ("flicker",),
}
# Where a free "add" puts the new object along the free half, in frame sides.
SPOTS = (0.2, 0.5, 0.8)
GAP = 0.01  # frame sides between an object and the walls of its half
MAX_PAN = 0.25  # frame sides over the clip

T = TypeVar("T")


def sample_spec(
    seed: int,
    index: int,
    split: str = "train",
    kinds: tuple[str, ...] = (),
    size: int = 64,
    frames: int = 8,
    world: str = "shapes",
    phrasings: tuple[int, ...] = (),
) -> Spec:
    """Samples a triplet of a seed's endless sequence; a pure function of the arguments.

    Args:
        seed: names the sequence.
        index: position in the sequence.
        split: one of SPLITS.
        kinds: kinds of edit out of ALL_KINDS, with equal probabilities (a kind that is listed twice
            is twice as likely); () = all kinds of the world.
        size: pixels of a side, a multiple of 8.
        frames: length of the clips.
        world: one of WORLDS.
        phrasings: indices of the phrasings of instructions; () = all.

    Raises:
        UserError: an unknown world, split or kind, a kind without one of these phrasings, or an
            impossible size or length.
    """
    if world not in WORLDS:
        raise UserError(f"world {world!r} is none of {', '.join(WORLDS)}")
    if split not in SPLITS:
        raise UserError(f"split {split!r} is none of {', '.join(SPLITS)}")
    unknown = [kind for kind in kinds if kind not in ALL_KINDS]
    if unknown:
        raise UserError(f"edit kinds {unknown} are unknown: choose from {', '.join(ALL_KINDS)}")
    rng = np.random.default_rng([seed, index])
    kind = pick(rng, kinds or WORLDS[world])
    while True:
        scene = sample_scene(rng, kind, world == CROWDED)
        edit = sample_edit(rng, scene, kind, phrasings)
        if held_out(scene, edit) == (split == "eval"):
            return Spec(scene, edit, size, frames)


def held_out(scene: Scene, edit: Edit) -> bool:
    """Whether a combination is reserved for evaluation, by a hash that never changes."""
    obj = subject(scene, edit)
    combination = f"{obj.shape} {obj.colour} {scene.background} {edit.kind} {edit.phrasing}"
    return int.from_bytes(hashlib.sha256(combination.encode()).digest()[:8], "big") % HELD_OUT == 0


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A random one of the options."""
    return options[int(rng.integers(len(options)))]


def sample_scene(rng: np.random.Generator, kind: str, crowded: bool) -> Scene:
    """A source scene for a kind of edit."""
    counts = {"add": 1, "free-add": 1, "remove": 2, "hidden-colour": 2}
    count = counts.get(kind) or (int(rng.integers(1, 3)) if crowded else 1)
    half = pick(rng, tuple(HALVES))
    if count == 2:
        regions = [HALVES[half], HALVES[OPPOSITE[half]]]
    else:
        regions = [HALVES[half] if kind in ("add", "free-add") else WHOLE]
    background = pick(rng, tuple(BACKGROUNDS))
    min_radius = RADII["large"] if kind == "size" else 0.0
    objects: list[Object] = []
    textured = crowded and kind != "free-texture"
    for region in regions:
        objects.append(sample_object(rng, region, background, objects, min_radius, textured))
    pan = (0.0, 0.0)
    if crowded and rng.integers(2):
        x, y = rng.uniform(-MAX_PAN, MAX_PAN, 2).tolist()
        pan = (x, y)
    scene = Scene(tuple(objects), background, pan, wave=WAVE if crowded else 0.0)
    if kind not in DISTURBANCES:
        return scene
    exposure = float(rng.uniform(*EXPOSURES)) if kind == "remove-flicker" else 1.0
    disturbance = Disturbance(pick(rng, DISTURBANCES[kind]), int(rng.integers(2**31)))
    return dataclasses.replace(scene, exposure=exposure, disturbance=disturbance)


def sample_object(
    rng: np.random.Generator,
    region: Box,
    background: str,
    others: list[Object],
    min_radius: float,
    textured: bool,
) -> Object:
    """An object that differs from the others in shape and in colour.

    Args:
        rng: the generator.
        region: where the whole object stays.
        background: the scene's.
        others: the scene's objects so far.
        min_radius: the path leaves room for an object of this radius, in frame sides.
        textured: whether it may have a texture.
    """
    size = pick(rng, tuple(RADII))
    margin = max(RADII[size], min_radius) + GAP
    box = (region[0] + margin, region[1] + margin, region[2] - margin, region[3] - margin)
    texture = pick(rng, TEXTURES) if textured and rng.integers(2) else "plain"
    return Object(
        pick(rng, new_shapes(others)),
        pick(rng, new_colours(others, background)),
        size,
        texture,
        sample_path(rng, box),
    )


def new_shapes(objects: Iterable[Object]) -> list[str]:
    """Shapes that none of the objects has."""
    present = {obj.shape for obj in objects}
    return [shape for shape in SHAPES if shape not in present]


def new_colours(objects: Iterable[Object], background: str) -> list[str]:
    """Colours that none of the objects has and that stand out from the background."""
    present = {obj.colour for obj in objects}
    return [colour for colour in COLOURS if colour not in present and contrasts(colour, background)]


def sample_path(rng: np.random.Generator, box: Box) -> MotionPath:
    """A straight, curved or bouncing path, at least 0.4 of the box's longer side long."""
    motion = pick(rng, ("straight", "curved", "bouncing"))
    start, via, end = rng.uniform(0, 1, (3, 2))
    width, height = box[2] - box[0], box[3] - box[1]
    along = int(height > width) if width != height else int(rng.integers(2))
    start[along], end[along] = rng.uniform(0, 0.3), rng.uniform(0.7, 1)
    if motion == "bouncing":
        end += (end - start) * rng.uniform(0.5, 1)
    if rng.integers(2):
        start, end = end, start
    if motion != "curved":
        via = (start + end) / 2
    (x0, y0), (x1, y1), (x2, y2) = (point.tolist() for point in (start, via, end))
    return MotionPath(box, (x0, y0), (x1, y1), (x2, y2))


def allowed_phrasings(kind: str, phrasings: tuple[int, ...] = ()) -> list[int]:
    """Indices of the phrasings of a kind of edit that are among `phrasings`; () = all.

    Raises UserError if there is none.
    """
    count = len(PHRASINGS[kind])
    allowed = [i for i in range(count) if i in phrasings or not phrasings]
    if not allowed:
        raise UserError(
            f"phrasings {phrasings}: the kind {kind!r} has the phrasings 0 to {count - 1}; "
            "name one of them"
        )
    return allowed


def sample_edit(
    rng: np.random.Generator, scene: Scene, kind: str, phrasings: tuple[int, ...] = ()
) -> Edit:
    """An edit of a kind that changes something (but for "identity").

    "add" needs a scene with one object in a half of the frame, "remove" one with two objects.
    """
    phrasing = pick(rng, allowed_phrasings(kind, phrasings))
    target = int(rng.integers(len(scene.objects)))
    if kind == "add":
        place = free_place(scene.objects[0].path.box)
        shape = pick(rng, new_shapes(scene.objects))
        colour = pick(rng, new_colours(scene.objects, scene.background))
        added = resting_object(shape, colour, "medium", PLACES[place])
        return Edit(kind, phrasing, value=place, added=added)
    if kind in FREE_KINDS:
        shape = pick(rng, new_shapes(scene.objects)) if kind == "free-add" else ""
        drawn = pick(rng, free_values(scene, kind, target, shape))
        return dataclasses.replace(drawn, kind=kind, phrasing=phrasing)
    options = new_values(scene, BASE_KINDS.get(kind, kind), target)
    return Edit(kind, phrasing, target, pick(rng, options) if options else "")


def choices(spec: Spec) -> list[Spec]:
    """Every right result of a free edit, as an edit of the kind that FREE_KINDS names.

    The spec itself for an edit of another kind.
    """
    scene, edit = spec.scene, spec.edit
    if edit.kind not in FREE_KINDS:
        return [spec]
    edits = free_values(scene, edit.kind, edit.target, edit.added.shape if edit.added else "")
    return [dataclasses.replace(spec, edit=edit) for edit in edits]


def free_values(scene: Scene, kind: str, target: int, shape: str) -> list[Edit]:
    """The edits among which a free edit of this kind chooses; `shape`: of an added object."""
    kind = FREE_KINDS[kind]
    if kind != "add":
        values = [value for value in new_values(scene, kind, target) if value != "plain"]
        return [Edit(kind, 0, target, value) for value in values]
    side = free_place(scene.objects[0].path.box)
    x, y = PLACES[side]
    places = [(x, spot) if side in ("left", "right") else (spot, y) for spot in SPOTS]
    return [
        Edit(kind, 0, value=side, added=resting_object(shape, colour, "small", place))
        for colour in new_colours(scene.objects, scene.background)
        for place in places
    ]


def resting_object(shape: str, colour: str, size: str, place: tuple[float, float]) -> Object:
    """A plain object that does not move; `place`: (x, y) of its centre in frame sides."""
    centre = (0.5, 0.5)
    return Object(shape, colour, size, "plain", MotionPath(place + place, centre, centre, centre))


def new_values(scene: Scene, kind: str, target: int) -> list[str]:
    """The words that an attribute or the background can be changed to."""
    obj = scene.objects[target]
    if kind == "colour":
        return new_colours(scene.objects, scene.background)
    if kind == "shape":
        return new_shapes(scene.objects)
    if kind == "size":
        return [size for size in ("small", "large") if size != obj.size]
    if kind == "texture":
        return [texture for texture in TEXTURES if texture != obj.texture]
    if kind == "background":
        return [
            name
            for name in BACKGROUNDS
            if name != scene.background
            and all(contrasts(other.colour, name) for other in scene.objects)
        ]
    return []


def free_place(box: Box) -> str:
    """The half of the frame that is free if an object's centre stays in the box."""
    room = {"left": box[0], "top": box[1], "right": 1 - box[2], "bottom": 1 - box[3]}
    return max(room, key=lambda side: room[side])
