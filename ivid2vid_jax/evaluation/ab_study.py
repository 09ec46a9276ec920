"""Pairwise A/B comparison by people: a blind, randomised page whose answers are CSV files.

It stands in for the paper's user study; the questions are those of LOVEU-TGVE-2023.

Write study/index.html and study/key.json:

    python -m ivid2vid_jax.evaluate --edited OURS --against THEIRS --data DIR --output study

Serve the page here; answers are written to study/answers/:

    python -m ivid2vid_jax.evaluation.ab_study --folder study

Count the answers:

    python -m ivid2vid_jax.evaluate --votes study/answers/*.csv --output study

The page names no editor: key.json says which clip is whose, at random for each pair. Each
participant sees the pairs in another order, with other sides. The page also works as a file:
participants then download their answers at the end and send them.
"""

import csv
import dataclasses
import html
import io
import json
import re
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.ab_study_page import PAGE
from ivid2vid_jax.evaluation.page_parts import animation, data_uri
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.intervals import wilson_interval

QUESTIONS = {
    "text": "Which clip follows the instruction better?",
    "structure": "Which clip better preserves what the instruction does not ask to change?",
    "quality": "Which clip looks better?",
}
# choice: first, second or same; left: the clip that was on the left side
COLUMNS = ("participant", "pair", "question", "choice", "left", "seconds")
CHOICES = ("first", "second", "same")
METHOD = "shares are means over pairs, with Wilson intervals for the number of pairs"
MAX_BYTES = 2**20  # of one participant's answers


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A source clip and its two edits, as small animations (data URIs) for the page."""

    id: str
    instruction: str
    source: str
    edits: tuple[str, str]

    @classmethod
    def of(
        cls,
        id: str,
        instruction: str,
        source: np.ndarray,
        edits: tuple[np.ndarray, np.ndarray],
        fps: float,
    ) -> "Question":
        """Encodes clips [T, H, W, 3] uint8."""
        encoded, first, second = (
            data_uri(animation(clip, fps), "webp") for clip in (source, *edits)
        )
        return cls(id, instruction, encoded, (first, second))


def write(
    output: Path, questions: Sequence[Question], names: tuple[str, str], seed: int = 0
) -> Path:
    """Writes the page and its key; returns the page's path.

    Args:
        output: a new folder.
        questions: the pairs.
        names: of the two editors, in the order of each question's edits.
        seed: of which edit is "first" on the page.
    """
    if not questions:
        raise UserError("no pair of clips to show: both folders need edits of the same ids")
    if output.exists() and any(output.iterdir()):
        raise UserError(
            f"--output {output}: is not empty; name a new folder, because a new key would not fit "
            "the answers of an earlier page"
        )
    output.mkdir(parents=True, exist_ok=True)
    swapped = np.random.default_rng(seed).integers(0, 2, len(questions)).astype(bool)
    pairs, key = [], []
    for number, (question, swap) in enumerate(zip(questions, swapped, strict=True)):
        first, second = (1, 0) if swap else (0, 1)
        pairs.append(
            {
                "pair": number,
                "instruction": question.instruction,
                "source": question.source,
                "first": question.edits[first],
                "second": question.edits[second],
            }
        )
        owners = {"first": names[first], "second": names[second]}
        key.append({"pair": number, "id": question.id} | owners)
    with atomic_path(output / "key.json") as file:
        file.write_text(json.dumps({"editors": names, "pairs": key}, indent=2) + "\n")
    with atomic_path(output / "index.html") as file:
        file.write_text(
            PAGE.replace("__PAIRS__", script_json(pairs))
            .replace("__QUESTIONS__", script_json(QUESTIONS))
            .replace("__COLUMNS__", script_json(COLUMNS))
        )
    return output / "index.html"


def script_json(value: Any) -> str:
    """JSON in which no "</script>" can end the script that contains it."""
    return json.dumps(value).replace("<", "\\u003c")


# ---- counting answers ----


def tally(folder: Path, votes: Sequence[Path]) -> str:
    """Markdown: how often each editor was preferred, by question.

    A participant's last answer to a question of a pair counts. Shares are of the answers that
    prefer an editor, means over pairs; the interval is Wilson's for the number of such pairs,
    because answers to one pair are correlated.

    Args:
        folder: of the page and its key.
        votes: CSV files of answers.

    Raises:
        UserError: there is no key, or a row does not fit it.
    """
    try:
        key = json.loads((folder / "key.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--output {folder}: holds no key.json of an A/B page ({error})") from error
    first, second = key["editors"]
    pairs = {str(pair["pair"]): pair for pair in key["pairs"]}
    answers = read_preferences(folder, votes, pairs)
    participants = {participant for participant, _, _ in answers}
    lines = [
        f"{len(participants)} participants, {len(pairs)} pairs; {METHOD}",
        "",
        f"| question | {first} | {second} | same | {first} preferred [95%] |",
        "|---|---|---|---|---|",
    ]
    for question, words in QUESTIONS.items():
        preferences = [
            (pair, preferred) for (_, pair, name), preferred in answers.items() if name == question
        ]
        preferred = [name for _, name in preferences]
        counts = [str(preferred.count(name)) for name in (first, second, "same")]
        lines.append(f"| {words} | {' | '.join(counts)} | {preferred_share(preferences, first)} |")
    return "\n".join(lines)


def read_preferences(
    folder: Path, votes: Sequence[Path], pairs: dict[str, dict]
) -> dict[tuple[str, str, str], str]:
    """The preferred editor, or "same", by (participant, pair, question)."""
    preferences = {}
    for file in votes:
        for number, row in enumerate(read_answers(file), 2):
            pair, question, choice = row["pair"], row["question"], row["choice"]
            if pair not in pairs or question not in QUESTIONS or choice not in CHOICES:
                raise UserError(
                    f"{file}: row {number} is no answer to the page of {folder} "
                    f"({pair}, {question}, {choice})"
                )
            editor = pairs[pair].get(choice, "same")
            preferences[row["participant"], pair, question] = editor
    return preferences


def preferred_share(preferences: Sequence[tuple[str, str]], editor: str) -> str:
    """The share of answers (pair, preferred) that prefer an editor; "" if none prefers any."""
    by_pair: dict[str, list[bool]] = {}
    for pair, preferred in preferences:
        if preferred != "same":
            by_pair.setdefault(pair, []).append(preferred == editor)
    if not by_pair:
        return ""
    share = float(np.mean([np.mean(answers) for answers in by_pair.values()]))
    low, high = wilson_interval(share * len(by_pair), len(by_pair))
    return f"{100 * share:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"


def read_answers(file: Path) -> list[dict[str, str]]:
    """The rows of a file of answers. Raises UserError."""
    try:
        return parse_answers(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is not a CSV of answers ({error})") from error


def parse_answers(text: str) -> list[dict[str, str]]:
    """The rows of a CSV of answers. Raises ValueError for other columns."""
    rows = csv.DictReader(io.StringIO(text))
    columns = tuple(rows.fieldnames or ())
    if columns != COLUMNS:
        raise ValueError(f"its columns are {', '.join(columns)}, not {', '.join(COLUMNS)}")
    return list(rows)


# ---- the server ----


@dataclasses.dataclass
class StudyArgs:
    """Serves an A/B page and writes each participant's answers to FOLDER/answers/."""

    folder: Path  # as written by evaluate --against
    host: str = "127.0.0.1"  # 0.0.0.0 makes it reachable from other machines
    port: int = 8000  # 0 picks a free one


class StudyHandler(BaseHTTPRequestHandler):
    """Serves the page at / and accepts answers at /answers; subclasses set the folder."""

    folder: Path

    def do_GET(self):
        """Sends the page."""
        if self.path != "/":
            return self.send_error(404)
        page = (self.folder / "index.html").read_bytes()
        return self.reply(200, page, "text/html; charset=utf-8")

    def do_POST(self):
        """Stores the answers of one participant."""
        if self.path != "/answers":
            return self.send_error(404)
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MAX_BYTES:
            return self.send_error(413)
        text = self.rfile.read(length).decode(errors="replace")
        try:
            participants = {row["participant"] for row in parse_answers(text)}
        except ValueError as error:
            return self.reply(400, html.escape(str(error)).encode())
        name = participants.pop() if len(participants) == 1 else ""
        if not re.fullmatch("[0-9a-f]{16}", name):
            return self.reply(400, b"expected the answers of one participant")
        (self.folder / "answers").mkdir(exist_ok=True)
        with atomic_path(self.folder / "answers" / f"{name}.csv") as file:
            file.write_text(text)
        return self.reply(200, b"saved")

    def reply(self, code: int, body: bytes, content_type: str = "text/plain") -> None:
        """Sends a response."""
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Logs no requests."""


def server(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is not serving yet. Raises UserError if the folder has no page."""
    if not (folder / "index.html").is_file():
        raise UserError(
            f"--folder {folder}: holds no index.html; make it with: python -m "
            f"ivid2vid_jax.evaluate --edited DIR --against DIR --data DIR --output {folder}"
        )
    handler = type("Handler", (StudyHandler,), {"folder": folder})
    return ThreadingHTTPServer((host, port), handler)


def serve(args: StudyArgs) -> None:
    """Serves the page until it is interrupted."""
    try:
        http_server = server(args.folder, args.host, args.port)
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port}: cannot listen there ({error.strerror}); name "
            "another --port"
        ) from error
    print(f"http://{args.host}:{http_server.server_address[1]}/ (stop with Ctrl-C)")
    with http_server:
        http_server.serve_forever()


if __name__ == "__main__":
    main(StudyArgs, serve)
