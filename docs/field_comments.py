"""A griffe extension: the API reference shows the fields of a dataclass as one table.

The descriptions are the comments beside or above the fields, which the commands print as `--help`.
"""

import io
import tokenize

import griffe


class FieldComments(griffe.Extension):
    """Adds an "Attributes" section to the docstring of every dataclass that has no such section."""

    def on_class(self, *, cls: griffe.Class, **kwargs) -> None:
        """Extends the docstring of one class."""
        fields = [attribute for attribute in cls.attributes.values() if is_field(attribute)]
        if "dataclass" not in cls.labels or cls.docstring is None or not fields:
            return
        if "\nAttributes:" not in cls.docstring.value:
            lines = [f"    {field.name}: {describe(field)}" for field in fields]
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def is_field(attribute: griffe.Attribute) -> bool:
    """Whether an attribute of a class is a public annotated field with a known position."""
    public = not attribute.name.startswith("_")
    return public and attribute.annotation is not None and attribute.lineno is not None


def describe(field: griffe.Attribute) -> str:
    """The comment of a field and its default, if that is short."""
    lines = field.lines_collection[field.filepath]
    start, end = field.lineno - 1, field.endlineno
    text = comment_within(lines[start:end]) or comment_above(lines[:start])
    default = str(field.value) if field.value is not None else ""
    if default and "\n" not in default and len(default) <= 40:
        text = f"{text} (default: `{default}`)".strip()
    return text or "(no description)"


def comment_within(lines: list[str]) -> str:
    """The comments on a field's own lines, joined."""
    source = io.StringIO("\n".join(line.strip() for line in lines))
    try:
        tokens = list(tokenize.generate_tokens(source.readline))
    except tokenize.TokenError:
        return ""
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(comment.removeprefix("#").strip() for comment in comments)


def comment_above(lines: list[str]) -> str:
    """The block of comment lines that ends directly above a field."""
    block: list[str] = []
    for line in reversed(lines):
        if not line.strip().startswith("#"):
            break
        block.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(block)
