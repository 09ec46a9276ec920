"""What the shapes world contains: its vocabulary, a scene, an edit of it, and both as a `Spec`."""

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from ivid2vid_jax.errors import UserError

SHAPES = ("circle", "square", "triangle", "cross", "star")
TEXTURES = ("plain", "striped", "dotted")
# half of the object's width, in frame sides
RADII = {"small": 0.12, "medium": 0.165, "large": 0.22}
COLOURS = {
    "red": (225, 35, 35),
    "green": (40, 210, 60),
    "blue": (45, 75, 240),
    "yellow": (240, 205, 30),
    "purple": (150, 35, 190),
    "cyan": (60, 225, 240),
}
BACKGROUNDS = {
    "black": (25, 25, 25),
    "white": (230, 230, 230),
    "grey": (118, 118, 118),
    "green": (10, 70, 35),
    "pink": (225, 130, 170),
    "brown": (75, 45, 25),
}
# (x, y) in frame sides
PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75)}

# kind of edit -> words that it can set
VALUES: dict[str, Collection[str]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": RADII,
    "texture": TEXTURES,
    "background": BACKGROUNDS,
}
ATTRIBUTES = ("colour", "shape", "size", "texture")
STYLES = ("grey", "negative", "outline", "pixelated", "warm", "cool")
CROWDED_KINDS = (*ATTRIBUTES, "background", *STYLES, "add", "remove", "identity")
# Kinds of edit of the plain world, the default.
KINDS = tuple(kind for kind in CROWDED_KINDS if kind != "texture")
# No world samples the kinds below by default; `--kinds` names them.
# Free edits: the sentence leaves the value open. Any value that the kind on the right allows is
# right, if all frames show the same one.
FREE_KINDS = {
    "free-colour": "colour",
    "free-shape": "shape",
    "free-texture": "texture",
    "free-background": "background",
    "free-add": "add",
}
# Edits that need other frames: some frames do not show what the edit needs.
TEMPORAL_KINDS = ("remove-bar", "repair-frames", "remove-flicker", "hidden-colour")
# Kinds that change a scene as another kind does -> that kind.
BASE_KINDS = FREE_KINDS | {"hidden-colour": "colour"}
# For fine-tuning on something unseen.
UNSEEN_STYLE = "sepia"
ALL_STYLES = (*STYLES, UNSEEN_STYLE)
ALL_KINDS = (*CROWDED_KINDS, *FREE_KINDS, *TEMPORAL_KINDS, UNSEEN_STYLE)

# Smallest distance in RGB of an object and the background: 25 times the noise that the checker
# must tolerate.
MIN_CONTRAST = 100.0
# Smallest distance in grey levels, so that objects remain visible in a grey clip.
MIN_LUMA_CONTRAST = 20.0
# Amplitude of the background's waves in grey levels: they make a pan visible.
WAVE = 20.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class MotionPath:
    """The motion of an object: a quadratic Bezier curve in the unit square, scaled to `box`.

    The curve is reflected at the walls of the unit square. It is straight if `via` is the midpoint;
    the object rests if all three points are the same.

    Attributes:
        box: (x0, y0, x1, y1) in frame sides, where the object's centre may be.
        start: control point in box units.
        via: control point in box units.
        end: control point in box units; beyond [0, 1] the object bounces off the walls.
    """

    box: tuple[float, float, float, float]
    start: tuple[float, float]
    via: tuple[float, float]
    end: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape: its attributes, which are words of the tables above, and its motion."""

    shape: str
    colour: str
    size: str
    texture: str
    path: MotionPath


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """What hides or spoils a part of the clip.

    Attributes:
        kind: "bar" (a bar crosses the picture), "black" or "noise" (some frames are lost), or
            "flicker" (some frames are darker or brighter).
        seed: of the frames that are lost or flicker, and of the bar's direction.
    """

    kind: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip shows.

    Attributes:
        objects: in drawing order.
        background: a word of BACKGROUNDS.
        pan: motion of the camera over the clip, (x, y) in frame sides.
        style: one of ALL_STYLES, or None.
        wave: amplitude of the background's waves in grey levels.
        exposure: factor on all colours.
        disturbance: what hides or spoils a part of the clip, or None.
    """

    objects: tuple[Object, ...]
    background: str
    pan: tuple[float, float] = (0.0, 0.0)
    style: str | None = None
    wave: float = WAVE
    exposure: float = 1.0
    disturbance: Disturbance | None = None


@dataclasses.dataclass(frozen=True)
class Edit:
    """An edit of a scene.

    Attributes:
        kind: one of ALL_KINDS.
        phrasing: index of the instruction's phrasing.
        target: index of the object that the instruction mentions.
        value: new word of the attribute or the background, place of an added object, or ""; of a
            free edit, the value that was drawn.
        added: the new object of an "add".
    """

    kind: str
    phrasing: int
    target: int = 0
    value: str = ""
    added: Object | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """A full description of a triplet: both clips are rendered from it.

    Attributes:
        scene: what the source clip shows.
        edit: the edit of it.
        size: pixels of a side, a multiple of 8.
        frames: length of the clip; the objects' motion is spread over it.
        fps: frames per second.
    """

    scene: Scene
    edit: Edit
    size: int = 64
    frames: int = 8
    fps: float = 8.0

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 8:
            raise UserError(f"size {self.size} must be a multiple of 8 pixels")
        if self.frames < 1:
            raise UserError(f"frames {self.frames} must be at least 1")

    @property
    def edited(self) -> Scene:
        """What the edited clip shows."""
        return apply_edit(self.scene, self.edit)

    def to_json(self) -> str:
        """The spec as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        scene, edit = fields.pop("scene"), fields.pop("edit")
        scene["objects"] = tuple(object_from_json(obj) for obj in scene["objects"])
        scene["pan"] = tuple(scene["pan"])
        if disturbance := scene.get("disturbance"):
            scene["disturbance"] = Disturbance(**disturbance)
        if edit["added"]:
            edit["added"] = object_from_json(edit["added"])
        return cls(Scene(**scene), Edit(**edit), **fields)


def object_from_json(fields: dict[str, Any]) -> Object:
    """An object from its JSON fields."""
    path = MotionPath(**{name: tuple(numbers) for name, numbers in fields["path"].items()})
    return Object(**{**fields, "path": path})


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """Returns the edited scene; UserError for an unknown kind."""
    objects = list(scene.objects)
    kind = BASE_KINDS.get(edit.kind, edit.kind)
    if kind in ATTRIBUTES:
        attribute: dict[str, Any] = {kind: edit.value}
        objects[edit.target] = dataclasses.replace(objects[edit.target], **attribute)
    elif kind == "add":
        assert edit.added is not None
        objects.append(edit.added)
    elif kind == "remove":
        del objects[edit.target]
    elif kind == "background":
        return dataclasses.replace(scene, background=edit.value)
    elif kind in ALL_STYLES:
        return dataclasses.replace(scene, style=kind)
    elif kind in TEMPORAL_KINDS:
        return dataclasses.replace(scene, disturbance=None)
    elif kind != "identity":
        raise UserError(f"edit kind {edit.kind!r} is none of {', '.join(ALL_KINDS)}")
    return dataclasses.replace(scene, objects=tuple(objects))


def contrasts(colour: str, background: str) -> bool:
    """Whether an object of a colour stands out from a background, in its name and to the eye."""
    difference = [a - b for a, b in zip(COLOURS[colour], BACKGROUNDS[background], strict=True)]
    distance = sum(step**2 for step in difference) ** 0.5
    luma_distance = abs(sum(weight * step for weight, step in zip(LUMA, difference, strict=True)))
    return colour != background and distance >= MIN_CONTRAST and luma_distance >= MIN_LUMA_CONTRAST
