"""Draws scenes and edits by chance, and keeps the training and evaluation splits apart.

One in ten combinations of (shape, colour, background, phrasing) is held out: "train" never draws them, "eval" draws nothing else.
Shape and colour are those of the object that the instruction speaks of (the first one's where it speaks of none), the background is the
source clip's.
"""

import hashlib

import numpy as np

from ivid2vid_jax.data.shapes.language import PHRASINGS, subject
from ivid2vid_jax.data.shapes.scene import (
    ALL_KINDS,
    BACKGROUNDS,
    COLOURS,
    CROWDED_KINDS,
    KINDS,
    PLACES,
    RADII,
    SHAPES,
    TEXTURES,
    Edit,
    Object,
    Path,
    Scene,
    Spec,
    contrasts,
)
from ivid2vid_jax.utils.errors import UserError

CROWDED = "shapes-crowded"  # one object or two, some textured, uneven backgrounds that may pan
WORLDS = {
    "shapes": KINDS,
    CROWDED: CROWDED_KINDS,
}  # name -> the kinds of edit that it draws; "shapes": one plain object, two for "remove", flat and still
SPLITS = ("train", "eval")
HELD_OUT = 10  # one combination in so many
WHOLE = (0.0, 0.0, 1.0, 1.0)  # (x0, y0, x1, y1) in frame sides
HALVES = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
GAP = 0.01  # frame sides between an object and the walls of its half
MAX_PAN = 0.25  # frame sides over the clip


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
    """The index-th triplet of a seed's endless sequence, a pure function of the arguments.

    world: of WORLDS. kinds: names out of ALL_KINDS, each as likely as the others; one named twice is twice as likely; () = all of the world's. size:
    pixels of a side, a multiple of 8. phrasings: numbers of the sentences that instructions are drawn from, () = all. Raises UserError for an
    unknown world, split or kind, a kind without such a sentence, or a size or length that no clip can have.
    """
    if world not in WORLDS:
        raise UserError(f"world {world!r} is none of {', '.join(WORLDS)}")
    if split not in SPLITS:
        raise UserError(f"split {split!r} is none of {', '.join(SPLITS)}")
    unknown = [kind for kind in kinds if kind not in ALL_KINDS]
    if unknown:
        raise UserError(f"edit kinds {unknown} are not known: choose from {', '.join(ALL_KINDS)}")
    rng = np.random.default_rng([seed, index])
    kind = pick(rng, kinds or WORLDS[world])
    while True:
        scene = sample_scene(rng, kind, world == CROWDED)
        edit = sample_edit(rng, scene, kind, phrasings)
        if held_out(scene, edit) == (split == "eval"):
            return Spec(scene, edit, size, frames)


def held_out(scene: Scene, edit: Edit) -> bool:
    """Whether this combination is reserved for evaluation: by a hash, the same on every machine and for ever."""
    spoken_of = subject(scene, edit)
    combination = (
        f"{spoken_of.shape} {spoken_of.colour} {scene.background} {edit.kind} {edit.phrasing}"
    )
    return int.from_bytes(hashlib.sha256(combination.encode()).digest()[:8], "big") % HELD_OUT == 0


def pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def sample_scene(rng: np.random.Generator, kind: str, crowded: bool) -> Scene:
    """A source scene that an edit of that kind can be asked of."""
    count = {"add": 1, "remove": 2}.get(kind) or (int(rng.integers(1, 3)) if crowded else 1)
    half = pick(rng, tuple(HALVES))
    regions = (
        [HALVES[half], HALVES[OPPOSITE[half]]]
        if count == 2
        else [HALVES[half] if kind == "add" else WHOLE]
    )
    background = pick(rng, tuple(BACKGROUNDS))
    objects = []
    for region in regions:
        objects.append(
            sample_object(
                rng,
                region,
                background,
                objects,
                room=RADII["large"] if kind == "size" else 0.0,
                textured=crowded,
            )
        )
    if not crowded:
        return Scene(tuple(objects), background, wave=0.0)
    pan = (
        tuple(float(each) for each in rng.uniform(-MAX_PAN, MAX_PAN, 2))
        if rng.integers(2)
        else (0.0, 0.0)
    )
    return Scene(tuple(objects), background, pan)


def sample_object(
    rng: np.random.Generator,
    region,
    background: str,
    others: list[Object],
    room: float,
    textured: bool,
) -> Object:
    """Unlike the others in shape and in colour. room: the least radius, in frame sides, that must fit along the whole path."""
    size = pick(rng, tuple(RADII))
    margin = max(RADII[size], room) + GAP
    box = (region[0] + margin, region[1] + margin, region[2] - margin, region[3] - margin)
    texture = pick(rng, TEXTURES) if textured and rng.integers(2) else "plain"
    return Object(
        pick(rng, new_shapes(others)),
        pick(rng, new_colours(others, background)),
        size,
        texture,
        sample_path(rng, box),
    )


def new_shapes(objects) -> list[str]:
    return [shape for shape in SHAPES if shape not in {each.shape for each in objects}]


def new_colours(objects, background: str) -> list[str]:
    return [
        colour
        for colour in COLOURS
        if colour not in {each.colour for each in objects} and contrasts(colour, background)
    ]


def sample_path(rng: np.random.Generator, box: tuple[float, float, float, float]) -> Path:
    """A straight, curved or bouncing way, at least 0.4 of the box's longer side long, so that motion can be seen."""
    motion = pick(rng, ("straight", "curved", "bouncing"))
    start, via, end = rng.uniform(0, 1, (3, 2))
    along = (
        int(box[3] - box[1] > box[2] - box[0])
        if box[2] - box[0] != box[3] - box[1]
        else int(rng.integers(2))
    )
    start[along], end[along] = rng.uniform(0, 0.3), rng.uniform(0.7, 1)
    if motion == "bouncing":
        end += (end - start) * rng.uniform(0.5, 1)
    if rng.integers(2):
        start, end = end, start
    if motion != "curved":
        via = (start + end) / 2
    return Path(box, *(tuple(float(each) for each in point) for point in (start, via, end)))


def sentences(kind: str, phrasings: tuple[int, ...] = ()) -> list[int]:
    """Numbers of the sentences of a kind of edit, those among `phrasings` where any are named. Raises UserError where it has none of them."""
    count = len(PHRASINGS[kind])
    found = [i for i in range(count) if i in phrasings or not phrasings]
    if not found:
        raise UserError(
            f"phrasings {phrasings}: the kind {kind!r} has the sentences 0 to {count - 1}; name one of them"
        )
    return found


def sample_edit(
    rng: np.random.Generator, scene: Scene, kind: str, phrasings: tuple[int, ...] = ()
) -> Edit:
    """An edit of that kind that changes something. "add" wants one object in a half of the frame, "remove" wants two objects."""
    phrasing, target = pick(rng, sentences(kind, phrasings)), int(rng.integers(len(scene.objects)))
    if kind == "add":
        place = free_place(scene.objects[0].path.box)
        spot = (0.5, 0.5)
        shape, colour = (
            pick(rng, new_shapes(scene.objects)),
            pick(rng, new_colours(scene.objects, scene.background)),
        )
        return Edit(
            kind,
            phrasing,
            value=place,
            added=Object(
                shape, colour, "medium", "plain", Path(PLACES[place] * 2, spot, spot, spot)
            ),
        )
    options = values(scene, kind, target)
    return Edit(kind, phrasing, target, pick(rng, options) if options else "")


def values(scene: Scene, kind: str, target: int) -> list[str]:
    """The words that an attribute or the background can be changed to."""
    thing = scene.objects[target]
    if kind == "colour":
        return new_colours(scene.objects, scene.background)
    if kind == "shape":
        return new_shapes(scene.objects)
    if kind == "size":
        return [size for size in ("small", "large") if size != thing.size]
    if kind == "texture":
        return [texture for texture in TEXTURES if texture != thing.texture]
    if kind == "background":
        fitting = [
            name
            for name in BACKGROUNDS
            if all(contrasts(each.colour, name) for each in scene.objects)
        ]
        return [name for name in fitting if name != scene.background]
    return []


def free_place(box: tuple[float, float, float, float]) -> str:
    """The half of the frame that an object with its centre in the box leaves free."""
    walls = {"left": box[0], "top": box[1], "right": 1 - box[2], "bottom": 1 - box[3]}
    return max(walls, key=walls.get)
