"""Edit instructions for a captioned clip: by a chat model, by rules, or from a file of them.

An instruction keeps the clip's layout, motion and number of things, which neither Tune-A-Video nor any other editor here can change.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ivid2vid_jax.synthesis import rules
from ivid2vid_jax.synthesis.chat import Chat, ChatError
from ivid2vid_jax.synthesis.manifest import ACCEPTED, FAILED, REJECTED
from ivid2vid_jax.utils.errors import UserError

TYPES = {
    "object": "replace one thing by another of about its size and shape",
    "attribute": "change the colour, material or pattern of one thing",
    "background": "change what is behind or around the main things",
    "style": "render the whole clip as if drawn, painted or filmed in another way",
    "weather": "change the weather, the season or the time of day",
}
WORDS = 20  # most words of an instruction
ALIKE = 0.75  # share of words in common from which two instructions for one clip are the same
TRIES = 3  # replies asked for until one can be read

SYSTEM = """You write training data for a model that edits video clips by instruction. You get a clip's caption and a list of edit types, and answer with
one edit for each type, as a JSON array of objects with the keys "edit_type", "instruction" and "edited_caption", and nothing else.

- instruction: an order in plain words, at most 15 of them, that names what changes and into what.
- edited_caption: the caption with that one change; all that the instruction does not touch keeps its words.
- What moves keeps moving the same way; the number of things, their places, their sizes and the camera stay.
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
    """A reply that holds no proposals; the message says what is wrong with it, in words that the model can use."""


def target_types(index: int, count: int) -> list[str]:
    """The edit types asked for the index-th clip: they take turns, so that all are asked for as often whatever fails."""
    names = list(TYPES)
    return [names[(index * count + i) % len(names)] for i in range(count)]


def messages(caption: str, types: list[str]) -> list[dict]:
    """The conversation that asks for one edit of each type."""
    told = [
        {
            "role": "system",
            "content": SYSTEM.format(
                types="; ".join(f"{name}: {what}" for name, what in TYPES.items())
            ),
        }
    ]
    for example, kinds, answers in EXAMPLES:
        reply = [
            dict(edit_type=kind, instruction=order, edited_caption=after)
            for kind, (order, after) in zip(kinds, answers, strict=True)
        ]
        told += [
            {"role": "user", "content": question(example, kinds)},
            {"role": "assistant", "content": json.dumps(reply)},
        ]
    return [*told, {"role": "user", "content": question(caption, types)}]


def question(caption: str, types: Collection[str]) -> str:
    return f"Caption: {caption}\nEdit types: {', '.join(types)}"


def prompt_hash() -> str:
    """Of everything that is said to the model, captions apart."""
    return hashlib.sha256(json.dumps(messages("", list(TYPES))).encode()).hexdigest()[:16]


def parse(text: str) -> list[Proposal]:
    """The proposals of a reply: a JSON array, a fence or an object around it allowed. Raises Malformed."""
    begin, end = text.find("["), text.rfind("]")
    try:
        rows = json.loads(text[begin : end + 1]) if 0 <= begin < end else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(
            f"this is no JSON ({error}); answer with a JSON array and nothing else"
        ) from error
    if isinstance(rows, dict):
        rows = [rows]
    keys = [field.name for field in dataclasses.fields(Proposal)]
    out = []
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) and row[key].strip() for key in keys
        ):
            raise Malformed(
                f"each element must be an object with the texts {', '.join(keys)}; this one is not: {json.dumps(row)[:100]}"
            )
        out.append(Proposal(**{key: " ".join(row[key].split()) for key in keys}))
    if not out:
        raise Malformed("the array is empty")
    return out


def refusal(proposal: Proposal, caption: str, taken: Collection[Proposal]) -> str:
    """Why a proposal is not taken, in words; empty where it is."""
    if plain(proposal.edited_caption) == plain(caption):
        return "changes nothing: the edited caption is the caption"
    if len(proposal.instruction.split()) > WORDS:
        return f"the instruction has more than {WORDS} words"
    if proposal.edit_type not in TYPES and proposal.edit_type not in rules.SHAPES_TYPES:
        return f"edit type {proposal.edit_type!r} is unknown"
    for other in taken:
        if similarity(proposal.instruction, other.instruction) >= ALIKE or plain(
            proposal.edited_caption
        ) == plain(other.edited_caption):
            return f"nearly the same as {other.instruction!r}"
    return ""


def plain(text: str) -> tuple[str, ...]:
    """A text's words, in lower case and without articles and punctuation."""
    return tuple(
        word for word in re.findall(r"[\w']+", text.lower()) if word not in ("a", "an", "the")
    )


def similarity(a: str, b: str) -> float:
    """Share of the words of both texts that they have in common (Jaccard)."""
    one, two = set(plain(a)), set(plain(b))
    return len(one & two) / max(1, len(one | two))


def filter_proposals(
    proposals: list[Proposal], caption: str, most: int
) -> tuple[list[Proposal], list[dict]]:
    """(the first `most` that can be taken, the others with their reasons)."""
    taken, refused = [], []
    for proposal in proposals:
        if (
            reason := f"more than the {most} asked for"
            if len(taken) == most
            else refusal(proposal, caption, taken)
        ):
            refused.append(dataclasses.asdict(proposal) | {"reason": reason})
        else:
            taken.append(proposal)
    return taken, refused


def by_chat(chat: Chat, caption: str, types: list[str]) -> tuple[str, dict]:
    """(status, facts) of one clip for its manifest: proposals and refused ones, the model, the prompt's hash, tokens, every reply that could not be
    read.
    """
    facts = {
        "caption": caption,
        "prompt": prompt_hash(),
        "model": chat.config.model,
        "tokens_in": 0,
        "tokens_out": 0,
        "unread": [],
    }
    told = messages(caption, types)
    for _ in range(TRIES):
        try:
            reply = chat.ask(told)
        except ChatError as error:
            return FAILED, facts | {"reason": str(error)}
        facts |= {
            "model": reply.model,
            "tokens_in": facts["tokens_in"] + reply.tokens_in,
            "tokens_out": facts["tokens_out"] + reply.tokens_out,
        }
        try:
            taken, refused = filter_proposals(parse(reply.text), caption, len(types))
        except Malformed as error:
            facts["unread"].append(reply.text[:2000])
            told = [
                *told,
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": str(error)},
            ]
            continue
        return instruction_outcome(facts, taken, refused)
    return REJECTED, facts | {"reason": f"no reply of {TRIES} could be read"}


def by_rules(caption: str, types: list[str], seed: int) -> tuple[str, dict]:
    """The same by rules, without any model."""
    taken, refused = filter_proposals(
        [Proposal(*row) for row in rules.proposals(caption, types, seed)], caption, len(types)
    )
    return instruction_outcome({"caption": caption, "model": "rules"}, taken, refused)


def instruction_outcome(
    facts: dict, taken: list[Proposal], refused: list[dict]
) -> tuple[str, dict]:
    facts |= {"proposals": [dataclasses.asdict(each) for each in taken], "refused": refused}
    return (
        (ACCEPTED, facts)
        if taken
        else (
            REJECTED,
            facts
            | {
                "reason": "; ".join(each["reason"] for each in refused)
                or "no edit fits the caption"
            },
        )
    )


def from_file(path: Path) -> Iterator[tuple[str, Proposal]]:
    """(caption, proposal) of each line of a JSON-lines file, InstructPix2Pix's among them: its `input` and its readers' `caption` are one."""
    if not path.is_file():
        raise UserError(f"--instructions {path}: no such file, nor is it chat, rules or shapes")
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                caption = row["input"] if "input" in row else row["caption"]
                yield caption, Proposal(row["edit"], row["output"], row.get("edit_type", "object"))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: needs input (or caption), edit and output ({type(error).__name__}: {error})"
                ) from error
