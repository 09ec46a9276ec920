"""Edit instructions by rules: the offline default. Words of the caption that a table knows are exchanged for others of the same kind.

On captions of the shapes world the rules speak its own language, so that its checker can judge what comes of them.
"""

import random
import re
from collections.abc import Callable, Iterator

COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "orange",
    "white",
    "black",
    "brown",
    "pink",
    "grey",
    "cyan",
)
THINGS = (
    ("dog", "fox", "wolf", "cat"),
    ("horse", "zebra", "deer"),
    ("bird", "parrot", "eagle"),
    ("duck", "swan", "goose"),
    ("cow", "bison"),
    ("bear", "panda"),
    ("car", "jeep", "truck", "van"),
    ("bus", "tram"),
    ("boat", "ship"),
    ("bicycle", "motorbike"),
    ("man", "robot", "astronaut"),
    ("woman", "robot", "astronaut"),
    ("boy", "girl"),
    ("ball", "balloon", "pumpkin"),
)
SHAPES = ("circle", "square", "triangle", "cross", "star")
PLACES = (
    ("street", "road", "desert", "snowfield"),
    ("city", "forest", "village"),
    ("beach", "snowfield", "desert"),
    ("forest", "jungle", "city"),
    ("mountain", "volcano"),
    ("field", "meadow", "desert"),
    ("sea", "lake", "river"),
    ("park", "jungle"),
    ("room", "kitchen", "library"),
)
STYLES = (
    ("make it a watercolor painting", "a watercolor painting of {}"),
    ("turn it into a pencil sketch", "a pencil sketch of {}"),
    ("make it look like an oil painting", "an oil painting of {}"),
    ("turn it into a cartoon", "a cartoon of {}"),
    ("make it black and white", "a black and white film of {}"),
    ("make it pixel art", "pixel art of {}"),
)
WEATHER = (
    ("make it snow", "{} in the snow"),
    ("make it rain", "{} in the rain"),
    ("make it night", "{} at night"),
    ("make it foggy", "{} in thick fog"),
    ("make it autumn", "{} in autumn"),
    ("make it sunset", "{} at sunset"),
)
GROUNDS = ("black", "white", "grey", "green", "pink", "brown")  # backgrounds of the shapes world
SHAPES_TYPES = (
    "colour",
    "shape",
    "background",
    "remove",
    "add",
    "size",
    "texture",
)  # kinds of the shapes world beside the general ones


def proposals(caption: str, types: list[str], seed: int) -> Iterator[tuple[str, str, str]]:
    """(instruction, edited caption, edit type) for each type that some word of the caption allows."""
    for number, kind in enumerate(types):
        rng = random.Random(f"{seed} {number} {caption}")
        options = list(RULES[kind](caption)) if kind in RULES else []
        if options:
            yield (*rng.choice(options), kind)


def attribute(caption: str) -> Iterator[tuple[str, str]]:
    """Another colour for what is called by one, or for a thing that is called by none."""
    for match in re.finditer(
        rf"\b({'|'.join(COLOURS)}) ((?:\w+ )?)({'|'.join(nouns())})\b", caption
    ):
        for colour in COLOURS:
            if colour != match[1]:
                yield (
                    f"make the {match[2]}{match[3]} {colour}",
                    replaced(caption, match.start(1), match.end(1), colour),
                )
    for match in re.finditer(rf"\b(?:a|an|the) ({'|'.join(nouns())})\b", caption):
        for colour in COLOURS:
            yield (
                f"make the {match[1]} {colour}",
                replaced(caption, match.start(1), match.start(1), f"{colour} "),
            )


def things(caption: str) -> Iterator[tuple[str, str]]:
    """Another thing of about the same form."""
    yield from exchanged(caption, (*THINGS, SHAPES), "turn the {} into {}")


def background(caption: str) -> Iterator[tuple[str, str]]:
    if match := re.search(rf"\b({'|'.join(GROUNDS)}) background\b", caption):
        for colour in GROUNDS:
            if colour != match[1]:
                yield (
                    f"make the background {colour}",
                    replaced(caption, match.start(1), match.end(1), colour),
                )
    yield from exchanged(caption, PLACES, "replace the {} with {}")


def whole(table: tuple) -> Callable:
    """Edits that suit every caption."""
    return lambda caption: ((order, after.format(caption)) for order, after in table)


def exchanged(caption: str, families: tuple, order: str) -> Iterator[tuple[str, str]]:
    for family in families:
        for match in re.finditer(rf"\b({'|'.join(family)})\b", caption):
            for other in family:
                if other != match[1]:
                    yield (
                        order.format(match[1], article(other)),
                        replaced(caption, match.start(1), match.end(1), other),
                    )


def replaced(text: str, begin: int, end: int, word: str) -> str:
    """The text with another word in a place, and the article before it to match."""
    before = re.sub(
        r"\b([Aa])n? $",
        lambda match: match[1] + ("n " if word[0] in "aeiou" else " "),
        text[:begin],
    )
    return before + word + text[end:]


def article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def nouns() -> list[str]:
    return sorted({word for family in (*THINGS, SHAPES) for word in family})


RULES = {
    "object": things,
    "shape": things,
    "attribute": attribute,
    "colour": attribute,
    "background": background,
    "style": whole(STYLES),
    "weather": whole(WEATHER),
}
