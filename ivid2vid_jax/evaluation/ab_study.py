"""Pairwise A/B judgements by people: one page, blind and randomised, answers to CSV; in the place of the paper's user study.

    python -m ivid2vid_jax.evaluate --edited OURS --against THEIRS --data DIR --output study    # study/index.html and study/key.json
    python -m ivid2vid_jax.evaluation.ab_study --folder study                                      # serves it here; answers go into study/answers/
    python -m ivid2vid_jax.evaluate --votes study/answers/*.csv --output study                  # counts them

The page names no editor: which clip is whose stands in key.json alone, drawn anew for each pair. Each participant sees the pairs in an order and with sides of
their own. It works from a file as well: the answers are then downloaded at the end and sent by whatever way. The questions are LOVEU-TGVE-2023's.
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

import numpy as np

from ivid2vid_jax.evaluation.ab_study_page import PAGE
from ivid2vid_jax.evaluation.report import animation, uri
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import wilson_interval

QUESTIONS = {
    "text": "Which clip follows the instruction better?",
    "structure": "Which clip keeps better what the instruction does not ask to change?",
    "quality": "Which clip looks better?",
}
COLUMNS = (
    "participant",
    "pair",
    "question",
    "choice",
    "left",
    "seconds",
)  # choice: first, second or same; left: the clip that stood there
SHARES = "shares are means over pairs, intervals Wilson's of as many answers as pairs"
MOST = 2**20  # bytes of one participant's answers


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A source clip and its two edits, as the page shows them: small animations, so that a set's clips need not be held."""

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
        """Clips [T, H, W, 3] uint8."""
        source, *edits = (uri(animation(clip, fps), "webp") for clip in (source, *edits))
        return cls(id, instruction, source, tuple(edits))


def write(
    output: Path, questions: Sequence[Question], names: tuple[str, str], seed: int = 0
) -> Path:
    """Writes the page and its key; names: of the two editors. The page's path."""
    if not questions:
        raise UserError("no pair of clips can be shown: both folders need edits of the same ids")
    if output.exists() and any(output.iterdir()):
        raise UserError(
            f"--output {output}: is not empty; name a new folder, or its key no longer fits the answers"
        )
    output.mkdir(parents=True, exist_ok=True)
    swapped = np.random.default_rng(seed).integers(0, 2, len(questions)).astype(bool)
    pairs, key = [], []
    for number, (question, swap) in enumerate(zip(questions, swapped, strict=True)):
        order = (1, 0) if swap else (0, 1)
        first, second = (question.edits[i] for i in order)
        pairs.append(
            {
                "pair": number,
                "instruction": question.instruction,
                "source": question.source,
                "first": first,
                "second": second,
            }
        )
        key.append(
            {"pair": number, "id": question.id, "first": names[order[0]], "second": names[order[1]]}
        )
    with atomic_path(output / "key.json") as file:
        file.write_text(json.dumps({"editors": names, "pairs": key}, indent=2) + "\n")
    with atomic_path(output / "index.html") as file:
        file.write_text(
            PAGE.replace("__PAIRS__", script(pairs))
            .replace("__QUESTIONS__", script(QUESTIONS))
            .replace("__COLUMNS__", script(COLUMNS))
        )
    return output / "index.html"


def script(value) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def tally(folder: Path, votes: Sequence[Path]) -> str:
    """Markdown: by question, how often each editor was preferred. Of a participant's several answers to one question of one pair the last counts.

    Shares are of the answers that prefer one, mean over pairs, with Wilson's 95% interval of as many answers as there are such pairs: what people say of one
    pair hangs together. Raises UserError for a folder without a key and for rows that do not fit it.
    """
    try:
        key = json.loads((folder / "key.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--output {folder}: holds no key.json of an A/B page ({error})") from error
    ours, theirs = key["editors"]
    owners, given = {str(pair["pair"]): pair for pair in key["pairs"]}, {}
    for file in votes:
        for number, row in enumerate(answers(file), 2):
            choice = row["choice"]
            if (
                row["pair"] not in owners
                or row["question"] not in QUESTIONS
                or choice not in ("first", "second", "same")
            ):
                raise UserError(
                    f"{file}: row {number} is no answer to {folder}'s page ({row['pair']}, {row['question']}, {choice})"
                )
            given[row["participant"], row["pair"], row["question"]] = owners[row["pair"]].get(
                choice, "same"
            )
    lines = [
        f"{len({participant for participant, *_ in given})} participants, {len(owners)} pairs; {SHARES}",
        "",
    ]
    lines += [
        f"| question | {ours} | {theirs} | same | {ours} preferred [95%] |",
        "|---|---|---|---|---|",
    ]
    for question in QUESTIONS:
        mine = [
            (pair, preferred) for (_, pair, asked), preferred in given.items() if asked == question
        ]
        first, second, same = (
            [preferred for _, preferred in mine].count(name) for name in (ours, theirs, "same")
        )
        lines.append(
            f"| {QUESTIONS[question]} | {first} | {second} | {same} | {share(mine, ours)} |"
        )
    return "\n".join(lines)


def share(answers: Sequence[tuple[str, str]], ours: str) -> str:
    """Of (pair, preferred editor), mean over pairs; empty where none prefers any."""
    pairs: dict[str, list[bool]] = {}
    for pair, preferred in answers:
        if preferred != "same":
            pairs.setdefault(pair, []).append(preferred == ours)
    if not pairs:
        return ""
    mean = float(np.mean([np.mean(each) for each in pairs.values()]))
    return "{:.0f}% [{:.0f}, {:.0f}]".format(
        *(100 * x for x in (mean, *wilson_interval(mean * len(pairs), len(pairs))))
    )


def answers(file: Path) -> list[dict[str, str]]:
    try:
        return parsed(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is not a CSV of answers ({error})") from error


def parsed(text: str) -> list[dict[str, str]]:
    """The rows of a CSV of answers; ValueError where it is none."""
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise ValueError(
            f"its columns are {', '.join(rows.fieldnames or ())}, not {', '.join(COLUMNS)}"
        )
    return list(rows)


# ---- the server ----


@dataclasses.dataclass
class StudyArgs:
    """Serves an A/B page; each participant's answers are written to FOLDER/answers/PARTICIPANT.csv."""

    folder: Path  # as evaluate --against wrote it
    host: str = "127.0.0.1"  # 0.0.0.0: reachable from other machines
    port: int = 8000


def server(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """Not yet serving. Raises UserError for a folder without a page."""
    if not (folder / "index.html").is_file():
        raise UserError(
            f"--folder {folder}: holds no index.html; make it with evaluate --edited DIR --against DIR --data DIR --output {folder}"
        )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/":
                return self.send_error(404)
            self.answer(200, (folder / "index.html").read_bytes(), "text/html; charset=utf-8")

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != "/answers" or not 0 < length <= MOST:
                return self.send_error(404 if self.path != "/answers" else 413)
            text = self.rfile.read(length).decode(errors="replace")
            try:
                people = {row["participant"] for row in parsed(text)}
            except ValueError as error:
                return self.answer(400, html.escape(str(error)).encode())
            if len(people) != 1 or not re.fullmatch("[0-9a-f]{16}", name := people.pop()):
                return self.answer(400, b"one participant's answers are wanted")
            (folder / "answers").mkdir(exist_ok=True)
            with atomic_path(folder / "answers" / f"{name}.csv") as file:
                file.write_text(text)
            self.answer(200, b"kept")

        def answer(self, code: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    return ThreadingHTTPServer((host, port), Handler)


def serve(args: StudyArgs) -> None:
    try:
        found = server(args.folder, args.host, args.port)
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port}: cannot be served there ({error.strerror}); name another --port"
        ) from error
    print(f"http://{args.host}:{found.server_address[1]}/ until Ctrl-C")
    with found:
        found.serve_forever()


if __name__ == "__main__":
    main(StudyArgs, serve)
