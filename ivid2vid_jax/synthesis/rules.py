"""Edit instructions by rules: words of the caption are replaced by others from the same table.

Needs no model and no network. Captions of the shapes world yield instructions in that world's own
language, so its checker can judge the edits.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator

COLOURS = (
    *("red", "green", "blue", "yellow", "purple", "orange"),
    *("white", "black", "brown", "pink", "grey", "cyan"),
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
# of the shapes world
BACKGROUNDS = ("black", "white", "grey", "green", "pink", "brown")
# edit types of the shapes world, beside the general ones
SHAPES_TYPES = ("colour", "shape", "background", "remove", "add", "size", "texture")

Edit = tuple[str, str]  # instruction, edited caption


def proposals(caption: str, types: list[str], seed: int) -> Iterator[tuple[str, str, str]]:
    """(instruction, edited caption, edit type) for each type that fits the caption."""
    for number, kind in enumerate(types):
        rng = random.Random(f"{seed} {number} {caption}")
        options = list(RULES[kind](caption)) if kind in RULES else []
        if options:
            yield (*rng.choice(options), kind)


def change_colour(caption: str) -> Iterator[Edit]:
    """Another colour for an object with one, or a colour for an object without."""
    nouns = "|".join(sorted({word for family in (*THINGS, SHAPES) for word in family}))
    for match in re.finditer(rf"\b({'|'.join(COLOURS)}) ((?:\w+ )?)({nouns})\b", caption):
        for colour in COLOURS:
            if colour != match[1]:
                yield (
                    f"make the {match[2]}{match[3]} {colour}",
                    replace_word(caption, match.start(1), match.end(1), colour),
                )
    for match in re.finditer(rf"\b(?:a|an|the) ({nouns})\b", caption):
        for colour in COLOURS:
            yield (
                f"make the {match[1]} {colour}",
                replace_word(caption, match.start(1), match.start(1), f"{colour} "),
            )


def change_object(caption: str) -> Iterator[Edit]:
    """Another object of about the same form."""
    yield from replace_within_families(caption, (*THINGS, SHAPES), "turn the {} into {}")


def change_background(caption: str) -> Iterator[Edit]:
    """Another colour of the shapes world's background, or another place."""
    if match := re.search(rf"\b({'|'.join(BACKGROUNDS)}) background\b", caption):
        for colour in BACKGROUNDS:
            if colour != match[1]:
                yield (
                    f"make the background {colour}",
                    replace_word(caption, match.start(1), match.end(1), colour),
                )
    yield from replace_within_families(caption, PLACES, "replace the {} with {}")


def apply_to_all(table: Iterable[Edit]) -> Callable[[str], Iterator[Edit]]:
    """A rule that fits every caption; `table` has an instruction and a template of the caption."""
    return lambda caption: (
        (instruction, template.format(caption)) for instruction, template in table
    )


def replace_within_families(
    caption: str, families: Iterable[tuple[str, ...]], instruction: str
) -> Iterator[Edit]:
    """Replaces a word of a family by each other word of it."""
    for family in families:
        for match in re.finditer(rf"\b({'|'.join(family)})\b", caption):
            for other in family:
                if other != match[1]:
                    yield (
                        instruction.format(match[1], with_article(other)),
                        replace_word(caption, match.start(1), match.end(1), other),
                    )


def replace_word(text: str, begin: int, end: int, word: str) -> str:
    """Puts a word in the place of text[begin:end] and adapts the article before it."""
    before = re.sub(
        r"\b([Aa])n? $",
        lambda match: match[1] + ("n " if word[0] in "aeiou" else " "),
        text[:begin],
    )
    return before + word + text[end:]


def with_article(word: str) -> str:
    """The word after "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


RULES: dict[str, Callable[[str], Iterator[Edit]]] = {
    "object": change_object,
    "shape": change_object,
    "attribute": change_colour,
    "colour": change_colour,
    "background": change_background,
    "style": apply_to_all(STYLES),
    "weather": apply_to_all(WEATHER),
}
