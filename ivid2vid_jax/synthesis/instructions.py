"""Edit instructions for a captioned clip: by a chat model, by rules, or from a file.

An instruction must keep the clip's layout, its motion and the number of objects, because no editor
of the data engine can change them.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis import rules
from ivid2vid_jax.synthesis.chat import Chat, ChatError
from ivid2vid_jax.synthesis.manifest import ACCEPTED, FAILED, REJECTED, Outcome

TYPES = {
    "object": "replace one thing by another of about its size and shape",
    "attribute": "change the colour, material or pattern of one thing",
    "background": "change what is behind or around the main things",
    "style": "render the whole clip as if drawn, painted or filmed in another way",
    "weather": "change the weather, the season or the time of day",
}
MAX_WORDS = 20  # of an instruction
MAX_SIMILARITY = 0.75  # Jaccard index from which two instructions for one clip count as the same
MAX_REPLIES = 3  # requests per clip until a reply can be parsed

# SYSTEM and EXAMPLES are hashed into fingerprints: a change of wording makes all instructions anew.
SYSTEM = """\
You write training data for a model that edits video clips by instruction. \
You get a clip's caption and a list of edit types, and answer with
one edit for each type, as a JSON array of objects with the keys "edit_type", "instruction" and \
"edited_caption", and nothing else.

- instruction: an order in plain words, at most 15 of them, that names what changes and into what.
- edited_caption: the caption with that one change; all that the instruction does not touch \
keeps its words.
- What moves keeps moving the same way; the number of things, their places, their sizes and \
the camera stay.
- Every edit must be seen in every frame.

Edit types: {types}"""

EXAMPLES = (
    (
        "a brown dog runs along a beach",
        ("object", "style"),
        (
            ("make the dog a fox", "a fox runs along a beach"),
            (
                "turn it into a watercolor painting",
                "a watercolor painting of a brown dog running along a beach",
            ),
        ),
    ),
    (
        "a woman in a white coat rides a bicycle through a city",
        ("attribute", "weather", "background"),
        (
            ("make her coat red", "a woman in a red coat rides a bicycle through a city"),
            ("make it snow", "a woman in a white coat rides a bicycle through a snowy city"),
            (
                "replace the city with a forest",
                "a woman in a white coat rides a bicycle through a forest",
            ),
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """One edit of one clip, in words."""

    instruction: str
    edited_caption: str
    edit_type: str


class Malformed(ValueError):
    """A reply without proposals; the message is sent back to the model."""


def target_types(index: int, count: int) -> list[str]:
    """The `count` edit types to ask for the index-th clip: round robin over TYPES."""
    names = list(TYPES)
    return [names[(index * count + i) % len(names)] for i in range(count)]


def messages(caption: str, types: list[str]) -> list[dict]:
    """The conversation that asks for one edit of each type."""
    described = "; ".join(f"{name}: {description}" for name, description in TYPES.items())
    conversation = [{"role": "system", "content": SYSTEM.format(types=described)}]
    for example, kinds, answers in EXAMPLES:
        reply = [
            dict(edit_type=kind, instruction=instruction, edited_caption=edited)
            for kind, (instruction, edited) in zip(kinds, answers, strict=True)
        ]
        conversation += [
            {"role": "user", "content": question(example, kinds)},
            {"role": "assistant", "content": json.dumps(reply)},
        ]
    return [*conversation, {"role": "user", "content": question(caption, types)}]


def question(caption: str, types: Collection[str]) -> str:
    """The user's message for one clip."""
    return f"Caption: {caption}\nEdit types: {', '.join(types)}"


def prompt_hash() -> str:
    """A hash of all messages to the model, with an empty caption."""
    return hashlib.sha256(json.dumps(messages("", list(TYPES))).encode()).hexdigest()[:16]


def parse(text: str) -> list[Proposal]:
    """The proposals of a reply: a JSON array, possibly in a code fence, an object or other text.

    Raises Malformed if there is none.
    """
    begin, end = text.find("["), text.rfind("]")
    try:
        rows = json.loads(text[begin : end + 1] if 0 <= begin < end else text)
    except (ValueError, RecursionError) as error:
        raise Malformed(
            f"this is no JSON ({error}); answer with a JSON array and nothing else"
        ) from error
    proposals = [parse_row(row) for row in (rows if isinstance(rows, list) else [rows])]
    if not proposals:
        raise Malformed("the array is empty")
    return proposals


def parse_row(row: Any) -> Proposal:
    """One element of a reply's array. Raises Malformed if a key is missing or no text."""
    keys = [field.name for field in dataclasses.fields(Proposal)]
    if not isinstance(row, dict) or not all(
        isinstance(row.get(key), str) and row[key].strip() for key in keys
    ):
        raise Malformed(
            f"each element must be an object with the texts {', '.join(keys)}; "
            f"this one is not: {json.dumps(row)[:100]}"
        )
    return Proposal(**{key: " ".join(row[key].split()) for key in keys})


def refusal_reason(proposal: Proposal, caption: str, accepted: Collection[Proposal]) -> str:
    """Why a proposal is refused, beside those already accepted; "" if it is not."""
    if content_words(proposal.edited_caption) == content_words(caption):
        return "changes nothing: the edited caption is the caption"
    if len(proposal.instruction.split()) > MAX_WORDS:
        return f"the instruction has more than {MAX_WORDS} words"
    if proposal.edit_type not in TYPES and proposal.edit_type not in rules.SHAPES_TYPES:
        return f"edit type {proposal.edit_type!r} is unknown"
    for other in accepted:
        if similarity(proposal.instruction, other.instruction) >= MAX_SIMILARITY or content_words(
            proposal.edited_caption
        ) == content_words(other.edited_caption):
            return f"nearly the same as {other.instruction!r}"
    return ""


def content_words(text: str) -> tuple[str, ...]:
    """The words of a text, in lower case, without articles and punctuation."""
    return tuple(
        word for word in re.findall(r"[\w']+", text.lower()) if word not in ("a", "an", "the")
    )


def similarity(a: str, b: str) -> float:
    """Jaccard index of the content words of two texts."""
    words_a, words_b = set(content_words(a)), set(content_words(b))
    return len(words_a & words_b) / max(1, len(words_a | words_b))


def filter_proposals(
    proposals: list[Proposal], caption: str, limit: int
) -> tuple[list[Proposal], list[dict]]:
    """Splits proposals into at most `limit` accepted ones and refused ones with reasons."""
    accepted: list[Proposal] = []
    refused: list[dict] = []
    for proposal in proposals:
        if len(accepted) == limit:
            reason = f"more than the {limit} asked for"
        else:
            reason = refusal_reason(proposal, caption, accepted)
        if reason:
            refused.append(dataclasses.asdict(proposal) | {"reason": reason})
        else:
            accepted.append(proposal)
    return accepted, refused


def by_chat(chat: Chat, caption: str, types: list[str]) -> Outcome:
    """Asks a chat model for one edit of each type.

    Returns the outcome for the manifest: accepted and refused proposals, the model, the prompt's
    hash, the tokens used, and every reply that could not be parsed.
    """
    facts: dict[str, Any] = {
        "caption": caption,
        "prompt": prompt_hash(),
        "model": chat.config.model,
        "tokens_in": 0,
        "tokens_out": 0,
        "unread": [],
    }
    conversation = messages(caption, types)
    for _ in range(MAX_REPLIES):
        try:
            reply = chat.ask(conversation)
        except ChatError as error:
            return FAILED, facts | {"reason": str(error)}
        facts["model"] = reply.model
        facts["tokens_in"] += reply.tokens_in
        facts["tokens_out"] += reply.tokens_out
        try:
            proposals = parse(reply.text)
        except Malformed as error:
            facts["unread"].append(reply.text[:2000])
            conversation = [
                *conversation,
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": str(error)},
            ]
        else:
            return proposals_outcome(facts, proposals, len(types))
    return REJECTED, facts | {"reason": f"no reply of {MAX_REPLIES} could be read"}


def by_rules(caption: str, types: list[str], seed: int) -> Outcome:
    """Proposals of the given types by `rules.py`, as an outcome for the manifest."""
    proposals = [Proposal(*row) for row in rules.proposals(caption, types, seed)]
    return proposals_outcome({"caption": caption, "model": "rules"}, proposals, len(types))


def proposals_outcome(facts: dict[str, Any], proposals: list[Proposal], limit: int) -> Outcome:
    """Filters the proposals for facts["caption"]: accepted if at least one of them is."""
    accepted, refused = filter_proposals(proposals, facts["caption"], limit)
    facts |= {
        "proposals": [dataclasses.asdict(proposal) for proposal in accepted],
        "refused": refused,
    }
    if accepted:
        return ACCEPTED, facts
    reasons = "; ".join(proposal["reason"] for proposal in refused)
    return REJECTED, facts | {"reason": reasons or "no edit fits the caption"}


def from_file(path: Path) -> Iterator[tuple[str, Proposal]]:
    """(caption, proposal) per line of a JSON-lines file in InstructPix2Pix's format.

    The caption is read from "input" or "caption". Raises UserError for a missing file or a
    malformed line.
    """
    if not path.is_file():
        raise UserError(f"--instructions {path}: no such file, nor is it chat, rules or shapes")
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                caption = row["input"] if "input" in row else row["caption"]
                yield caption, Proposal(row["edit"], row["output"], row.get("edit_type", "object"))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: needs input (or caption), edit and output "
                    f"({type(error).__name__}: {error})"
                ) from error
