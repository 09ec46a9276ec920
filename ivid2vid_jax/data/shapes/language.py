"""The shapes world in words: captions of scenes, and several phrasings of every edit.

The vocabulary is small, for a small text encoder.
"""

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

# What a caption says about a kind of disturbance.
DISTURBED = {
    "bar": ", behind a bar",
    "black": ", with missing frames",
    "noise": ", with missing frames",
    "flicker": ", with flicker",
}

STYLE_PHRASINGS = (
    "make it {look}",
    "make the video {look}",
    "turn everything {look}",
    "use the {look} style",
    "show it in {look} style",
)
# Kind of edit -> templates of its instruction; `Edit.phrasing` is an index into them.
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
    "free-colour": (
        "make the {shape} another colour",
        "turn the {shape} another colour",
        "change the colour of the {shape}",
        "paint the {shape} some other colour",
    ),
    "free-shape": (
        "turn the {shape} into another shape",
        "make the {shape} another shape",
        "change the shape of the {shape}",
        "replace the {shape} with another shape",
    ),
    "free-texture": (
        "give the {shape} a pattern",
        "put a pattern on the {shape}",
        "add a pattern to the {shape}",
        "the {shape} should have a pattern",
    ),
    "free-background": (
        "put it on some other background",
        "use another background",
        "change the background",
        "the background should be another one",
    ),
    "free-add": (
        "add a small {shape}",
        "put a small {shape} somewhere",
        "show a small {shape} too",
        "there should be a small {shape} too",
    ),
    "remove-bar": (
        "remove the bar",
        "take away the bar",
        "delete the bar",
        "make the bar go away",
    ),
    "repair-frames": (
        "repair the missing frames",
        "fill in the missing frames",
        "restore the missing frames",
        "show the missing frames",
    ),
    "remove-flicker": (
        "remove the flicker",
        "stop the flicker",
        "make the light steady",
        "the light should be steady",
    ),
    "hidden-colour": (
        "make the {shape} {value}",
        "turn the {shape} {value}",
        "change the colour of the {shape} to {value}",
        "the {shape} should be {value}",
    ),
    "identity": (
        "leave it as it is",
        "do not change it",
        "keep the video as it is",
        "change nothing",
    ),
} | dict.fromkeys(ALL_STYLES, STYLE_PHRASINGS)


def subject(scene: Scene, edit: Edit) -> Object:
    """The object that the instruction mentions: the added one, or the target."""
    return edit.added or scene.objects[edit.target]


def instruction(scene: Scene, edit: Edit) -> str:
    """The instruction for an edit of a scene."""
    mentioned = subject(scene, edit)
    return PHRASINGS[edit.kind][edit.phrasing].format(
        shape=mentioned.shape,
        colour=mentioned.colour,
        value=edit.value,
        look=LOOKS.get(edit.kind),
        where=WHERE.get(edit.value),
    )


def edit_towards(scene: Scene, edited_caption: str) -> Edit | None:
    """Finds the edit of one attribute, the background or the style that leads to a caption.

    Returns None if there is none.
    """
    edits = [
        Edit(kind, 0, target, value)
        for kind, values in VALUES.items()
        for target in range(len(scene.objects))
        for value in values
    ]
    edits += [Edit(style, 0) for style in ALL_STYLES]
    for edit in edits:
        edited = apply_edit(scene, edit)
        if edited != scene and caption(edited) == edited_caption:
            return edit
    return None


def caption(scene: Scene) -> str:
    """What a clip shows, e.g. "a large red circle on a white background, outlined"."""
    objects = " and ".join(describe(obj) for obj in scene.objects)
    style = f", {LOOKS[scene.style]}" if scene.style else ""
    disturbed = DISTURBED[scene.disturbance.kind] if scene.disturbance else ""
    return f"{objects} on a {scene.background} background{style}{disturbed}"


def describe(obj: Object) -> str:
    """An object in words; size and texture are left out if they are the default ones."""
    words = [obj.size] if obj.size != "medium" else []
    if obj.texture != "plain":
        words.append(obj.texture)
    return " ".join(["a", *words, obj.colour, obj.shape])
