"""A griffe extension: the comment of a dataclass field is its documentation.

The commands print these comments as `--help`, so the API reference shows the same text.
"""

import io
import tokenize

import griffe


class FieldComments(griffe.Extension):
    """Gives every attribute of a class without a docstring the comment beside or above it."""

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs) -> None:
        """Sets the docstring of one attribute."""
        if attr.docstring or attr.lineno is None or not (attr.parent and attr.parent.is_class):
            return
        lines = attr.lines_collection[attr.filepath]
        text = trailing_comment(lines[attr.lineno - 1 : attr.endlineno]) or comment_above(
            lines[: attr.lineno - 1]
        )
        if text:
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)


def trailing_comment(lines: list[str]) -> str:
    """The comments within a field's own lines, joined."""
    source = io.StringIO("\n".join(line.strip() for line in lines))
    try:
        tokens = list(tokenize.generate_tokens(source.readline))
    except tokenize.TokenError:
        return ""
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(comment.removeprefix("#").strip() for comment in comments)


def comment_above(lines: list[str]) -> str:
    """The block of comment lines that ends directly above a field."""
    block = []
    for line in reversed(lines):
        if not line.strip().startswith("#"):
            break
        block.append(line.strip().removeprefix("#").strip())
    return " ".join(reversed(block))
