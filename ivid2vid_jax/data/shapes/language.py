"""The shapes world in words: captions of scenes, and several sentences for every edit. Few and simple words, for a small text encoder."""

from ivid2vid_jax.data.shapes.scene import (
    ALL_STYLES,
    VALUES,
    Edit,
    Object,
    Scene,
    apply_edit,
)

LOOKS = {style: style for style in ALL_STYLES} | {"outline": "outlined"}
WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}

STYLE_PHRASINGS = (
    "make it {look}",
    "make the video {look}",
    "turn everything {look}",
    "use the {look} style",
    "show it in {look} style",
)
PHRASINGS = {
    "colour": (
        "make the {shape} {value}",
        "make the {colour} {shape} {value}",
        "turn the {shape} {value}",
        "change the colour of the {shape} to {value}",
        "paint the {colour} {shape} {value}",
    ),
    "shape": (
        "make the {shape} a {value}",
        "turn the {colour} {shape} into a {value}",
        "change the {shape} to a {value}",
        "replace the {colour} {shape} with a {value}",
    ),
    "size": (
        "make the {shape} {value}",
        "make the {colour} {shape} {value}",
        "change the size of the {shape} to {value}",
        "the {colour} {shape} should be {value}",
    ),
    "texture": (
        "make the {shape} {value}",
        "make the {colour} {shape} {value}",
        "change the texture of the {shape} to {value}",
        "the {colour} {shape} should be {value}",
    ),
    "background": (
        "make the background {value}",
        "turn the background {value}",
        "change the background to {value}",
        "put it on a {value} background",
        "the background should be {value}",
    ),
    "add": (
        "add a {colour} {shape} {where}",
        "put a {colour} {shape} {where}",
        "show a {colour} {shape} {where}",
        "there should be a {colour} {shape} {where}",
    ),
    "remove": (
        "remove the {shape}",
        "remove the {colour} {shape}",
        "take away the {shape}",
        "delete the {colour} {shape}",
        "make the {shape} go away",
    ),
    "identity": (
        "leave it as it is",
        "do not change it",
        "keep the video as it is",
        "change nothing",
    ),
} | dict.fromkeys(ALL_STYLES, STYLE_PHRASINGS)


def subject(scene: Scene, edit: Edit) -> Object:
    """The object that the edit speaks of: the added one, else the target."""
    return edit.added or scene.objects[edit.target]


def instruction(scene: Scene, edit: Edit) -> str:
    """The edit of the scene as a sentence."""
    spoken_of = subject(scene, edit)
    words = {"shape": spoken_of.shape, "colour": spoken_of.colour, "value": edit.value}
    return PHRASINGS[edit.kind][edit.phrasing].format(
        **words, look=LOOKS.get(edit.kind), where=WHERE.get(edit.value)
    )


def edit_towards(scene: Scene, wanted: str) -> Edit | None:
    """The edit of one attribute, of the background or of the style that gives the scene this caption; None where there is none."""
    targets = range(len(scene.objects))
    edits = [
        Edit(kind, 0, target, value)
        for kind, values in VALUES.items()
        for target in targets
        for value in values
    ]
    edits += [Edit(style, 0) for style in ALL_STYLES]
    made = ((edit, apply_edit(scene, edit)) for edit in edits)
    return next(
        (edit for edit, edited in made if edited != scene and caption(edited) == wanted), None
    )


def caption(scene: Scene) -> str:
    """What the clip shows, as "a large red circle and a striped blue square on a white background, outlined"."""
    objects = " and ".join(describe(each) for each in scene.objects)
    style = f", {LOOKS[scene.style]}" if scene.style else ""
    return f"{objects} on a {scene.background} background{style}"


def describe(thing: Object) -> str:
    """Size and texture are said only where they are not the usual ones."""
    unusual = [
        word for word, usual in ((thing.size, "medium"), (thing.texture, "plain")) if word != usual
    ]
    return " ".join(["a", *unusual, thing.colour, thing.shape])
