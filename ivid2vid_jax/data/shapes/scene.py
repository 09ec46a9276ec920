"""What the shapes world holds: its words and numbers, a scene, an edit of it, and both together as a `Spec`."""

import dataclasses
import json

from ivid2vid_jax.utils.errors import UserError

SHAPES = ("circle", "square", "triangle", "cross", "star")
TEXTURES = ("plain", "striped", "dotted")
RADII = {
    "small": 0.12,
    "medium": 0.165,
    "large": 0.22,
}  # half of the object's width, in frame sides
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
PLACES = {
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
}  # (x, y) in frame sides

VALUES = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": RADII,
    "texture": TEXTURES,
    "background": BACKGROUNDS,
}  # kind -> words that it can set
ATTRIBUTES = ("colour", "shape", "size", "texture")
STYLES = ("grey", "negative", "outline", "pixelated", "warm", "cool")
CROWDED_KINDS = (*ATTRIBUTES, "background", *STYLES, "add", "remove", "identity")
KINDS = tuple(
    kind for kind in CROWDED_KINDS if kind != "texture"
)  # of the plain world, the default
UNSEEN_STYLE = "sepia"  # a kind that can be asked for but that no default draws: for fine-tuning on something never seen
ALL_STYLES = (*STYLES, UNSEEN_STYLE)
ALL_KINDS = (*CROWDED_KINDS, UNSEEN_STYLE)

MIN_CONTRAST = 100.0  # Euclidean RGB distance between an object and the background: 25 times the noise that the checker must bear
MIN_LUMA_CONTRAST = 20.0  # grey levels, so that it is still seen where the colour is taken away
WAVE = 20.0  # grey levels by which a background is uneven, so that a pan is seen
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Path:
    """A quadratic Bezier curve in the unit square, folded back at its walls and stretched to `box`.

    box: (x0, y0, x1, y1) in frame sides, where the object's centre may be. start, via, end: control points in box units;
    an end beyond [0, 1] bounces. Straight where via is the middle; at rest where all three agree.
    """

    box: tuple[float, float, float, float]
    start: tuple[float, float]
    via: tuple[float, float]
    end: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape: its words, keys of the tables above, and its way through the clip."""

    shape: str
    colour: str
    size: str
    texture: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip shows. pan: how far the camera moves over the clip, (x, y) in frame sides. wave: the background's unevenness in grey levels."""

    objects: tuple[Object, ...]
    background: str
    pan: tuple[float, float] = (0.0, 0.0)
    style: str | None = None
    wave: float = WAVE


@dataclasses.dataclass(frozen=True)
class Edit:
    """kind: one of ALL_KINDS. phrasing: index of the sentence. target: index of the object it speaks of. value: the attribute's or the
    background's new word, the added object's place, else empty. added: the new object of an "add".
    """

    kind: str
    phrasing: int
    target: int = 0
    value: str = ""
    added: Object | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything there is to know of one triplet: a pure function of it draws both clips.

    size: pixels of a side, a multiple of 8. frames: length of the clip; the objects' whole way is spread over it. fps: frames per second.
    """

    scene: Scene
    edit: Edit
    size: int = 64
    frames: int = 8
    fps: float = 8.0

    def __post_init__(self):
        if self.size < 8 or self.size % 8:
            raise UserError(f"size {self.size} must be a multiple of 8 pixels")
        if self.frames < 1:
            raise UserError(f"frames {self.frames} must be at least 1")

    @property
    def edited(self) -> Scene:
        return apply_edit(self.scene, self.edit)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        scene, edit = fields.pop("scene"), fields.pop("edit")
        objects = tuple(object_from(each) for each in scene.pop("objects"))
        scene = Scene(**{**scene, "objects": objects, "pan": tuple(scene["pan"])})
        added = edit.pop("added")
        return cls(scene, Edit(**edit, added=added and object_from(added)), **fields)


def object_from(fields: dict) -> Object:
    path = Path(**{name: tuple(numbers) for name, numbers in fields["path"].items()})
    return Object(**{**fields, "path": path})


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene as the edit wants it. Raises UserError for an unknown kind."""
    objects = list(scene.objects)
    if edit.kind in ATTRIBUTES:
        objects[edit.target] = dataclasses.replace(objects[edit.target], **{edit.kind: edit.value})
    elif edit.kind == "add":
        objects.append(edit.added)
    elif edit.kind == "remove":
        del objects[edit.target]
    elif edit.kind == "background":
        return dataclasses.replace(scene, background=edit.value)
    elif edit.kind in ALL_STYLES:
        return dataclasses.replace(scene, style=edit.kind)
    elif edit.kind != "identity":
        raise UserError(f"edit kind {edit.kind!r} is none of {', '.join(ALL_KINDS)}")
    return dataclasses.replace(scene, objects=tuple(objects))


def contrasts(colour: str, background: str) -> bool:
    """Whether an object of that colour can be told from that background, by word and by eye."""
    steps = [a - b for a, b in zip(COLOURS[colour], BACKGROUNDS[background], strict=True)]
    distance = sum(step**2 for step in steps) ** 0.5
    luma_distance = abs(sum(weight * step for weight, step in zip(LUMA, steps, strict=True)))
    return colour != background and distance >= MIN_CONTRAST and luma_distance >= MIN_LUMA_CONTRAST
