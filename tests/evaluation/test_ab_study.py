"""The A/B page: blind, randomised, clicked through in a browser; its server; the vote count."""

import csv
import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import ab_study, evaluate_clips
from ivid2vid_jax.evaluation.ab_study import COLUMNS, QUESTIONS, Question
from ivid2vid_jax.utils.intervals import wilson_interval
from tests.evaluation.edited_set import command, save
from tests.support import browser
from tests.support.clips import static

HEADER = ",".join(COLUMNS) + "\n"
ANSWER = "0123456789abcdef,0,text,first,second,1.0\n"
IS_DARK = """side => {
    const image = document.getElementById(side), canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data[0] < 128;
}"""
IMAGES_LOADED = "() => Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)"


def questions(count=3):
    """The first edit is black, the second one white."""
    edits = (np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8))
    return [
        Question.of(f"clip{i}", f"make it </script> {i}", static(2, 16), edits, 8.0)
        for i in range(count)
    ]


@pytest.fixture
def study(tmp_path):
    """A study of three questions."""
    ab_study.write(tmp_path / "study", questions(), ("ours", "theirs"))
    return tmp_path / "study"


def read_key(folder):
    return json.loads((folder / "key.json").read_text())["pairs"]


@contextmanager
def serving(folder):
    server = ab_study.server(folder, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_page_is_blind_and_randomised(tmp_path):
    names = ("runs/ours", "runs/theirs")
    text = ab_study.write(tmp_path / "study", questions(40), names, seed=1).read_text()
    for secret in ("ours", "theirs", "clip0", "</script> 0"):
        assert secret not in text
    key = read_key(tmp_path / "study")
    firsts = [pair["first"] for pair in key]
    assert 8 < firsts.count("runs/ours") < 32
    assert all({pair["first"], pair["second"]} == set(names) for pair in key)
    pairs = json.loads(text.split("const pairs = ")[1].split(", questions = ")[0])
    ours = [
        pair["first" if owner == "runs/ours" else "second"]
        for pair, owner in zip(pairs, firsts, strict=True)
    ]
    assert len(set(ours)) == 1, "ours is the black clip, on either side"
    assert len({pair["first"] for pair in pairs}) == 2


def test_the_page_is_clicked_through(study, tmp_path):
    """Prefers the darker clip, which is ours: the server's answers agree, whatever the side."""
    with serving(study) as address, browser.page() as page:
        page.goto(address)
        assert page.locator("#count").inner_text() == "3" and not page.locator("#task").is_visible()
        page.click("#begin")
        instructions = set()
        for number in range(3):
            page.wait_for_function(IMAGES_LOADED)
            assert all(browser.pictures(page)) and page.locator("#next").is_disabled()
            assert page.locator("#progress").inner_text() == f"{number + 1} of 3"
            instructions.add(page.locator("#instruction").inner_text())
            side = "left" if page.evaluate(IS_DARK, "left") else "right"
            assert page.evaluate(IS_DARK, "left") != page.evaluate(IS_DARK, "right")
            for question in QUESTIONS:
                assert page.locator("#next").is_disabled()
                page.click(f"#{question}-{'same' if question == 'quality' else side}")
            page.click("#next")
        page.wait_for_function(
            "() => document.getElementById('sent').textContent.includes('have been saved')"
        )
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "download.csv")
        assert instructions == {f"make it </script> {i}" for i in range(3)} and page.errors == []
    (saved,) = (study / "answers").glob("*.csv")
    assert saved.read_text() == (tmp_path / "download.csv").read_text()
    with saved.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and tuple(rows[0]) == COLUMNS
    assert {row["pair"] for row in rows} == {"0", "1", "2"}
    text = ab_study.tally(study, [saved])
    assert text.startswith("1 participants, 3 pairs")
    assert f"| {QUESTIONS['text']} | 3 | 0 | 0 | 100% [44, 100] |" in text
    assert f"| {QUESTIONS['quality']} | 0 | 0 | 3 |  |" in text


def post(address, text):
    """The status of a request; 413 also if the server hangs up before it has read everything."""
    request = urllib.request.Request(address, text.encode(), method="POST")
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status
    except urllib.error.URLError as error:
        return getattr(error, "code", 413)


def test_the_server_accepts_only_answers(study):
    answers = HEADER + ANSWER
    bad = (
        "a,b\n",
        answers.replace("0123456789abcdef", "../../x"),
        answers + ANSWER.replace("0", "1"),  # two participants
    )
    with serving(study) as address:
        assert [post(f"{address}/answers", answers) for _ in range(2)] == [200, 200]
        assert [post(f"{address}/answers", text) for text in bad] == [400] * 3
        assert post(f"{address}/key.json", answers) == 404
        assert post(f"{address}/answers", "x" * (ab_study.MAX_BYTES + 1)) == 413
        for path in ("/key.json", "/../key.json", "/answers/0123456789abcdef.csv"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + path)
    assert [file.name for file in (study / "answers").iterdir()] == ["0123456789abcdef.csv"]


def test_the_command_writes_the_page_and_counts_votes(world, capsys):
    data, edited, output = world
    against = output.with_name("theirs")
    save(against / "clip1", static(3, 32))
    words = ("--edited", edited, "--against", against, "--data", data, "--output", output)
    code, err, out = command(capsys, *words)
    assert code == 0 and out.startswith("1 pairs, 2 left out; open ")
    assert (output / "index.html").is_file()
    votes = output / "v.csv"
    votes.write_text(HEADER + ANSWER)
    (pair,) = read_key(output)
    ours, theirs = (1, 0) if pair["first"] == str(edited) else (0, 1)
    count = ("--votes", votes, "--output", output)
    code, _, out = command(capsys, *count)
    assert code == 0 and f"| {QUESTIONS['text']} | {ours} | {theirs} | 0 |" in out
    code, err, _ = command(capsys, *words)
    assert code == 2 and f"--output {output}: is not empty; name a new folder" in err
    votes.write_text(votes.read_text().replace(",0,text", ",7,text"))
    code, err, _ = command(capsys, *count)
    assert code == 2 and "v.csv: row 2 is no answer" in err and "(7, text, first)" in err


def test_shares_are_of_pairs_and_the_last_answer_counts(tmp_path):
    """Two pairs: nine people prefer ours in the first, one in the second.

    One file is counted twice, and one participant changes an answer.
    """
    ab_study.write(tmp_path / "study", questions(2), ("ours", "theirs"))
    owners = {pair["pair"]: pair for pair in read_key(tmp_path / "study")}

    def vote(person, preferences):
        file = tmp_path / f"{person}-{len(list(tmp_path.glob('*.csv')))}.csv"
        lines = []
        for pair, editor in preferences.items():
            side = "first" if owners[pair]["first"] == editor else "second"
            lines.append(f"{person},{pair},text,{side},first,1.0\n")
        file.write_text(HEADER + "".join(lines))
        return file

    files = [vote(f"p{i}", {0: "ours"}) for i in range(9)]
    files.append(vote("x", {0: "theirs", 1: "ours"}))
    files += [files[0], vote("x", {0: "ours"}), vote("y", {0: "theirs"})]
    text = ab_study.tally(tmp_path / "study", files)
    low, high = wilson_interval(2 * (10 / 11 + 1) / 2, 2)
    assert text.startswith("11 participants, 2 pairs; shares are means over pairs")
    assert f"| {QUESTIONS['text']} | 11 | 1 | 0 | 95% [{100 * low:.0f}, {100 * high:.0f}] |" in text


def test_clips_are_encoded_pair_by_pair(world, capsys, monkeypatch):
    """Memory holds one pair: each is encoded before the next is read."""
    data, edited, output = world
    calls, read, encode = [], evaluate_clips.read_pair, ab_study.animation

    def logged(name, function):
        return lambda *args: calls.append(name) or function(*args)

    monkeypatch.setattr(evaluate_clips, "read_pair", logged("read", read))
    monkeypatch.setattr(ab_study, "animation", logged("encode", encode))
    words = ("--edited", edited, "--against", edited, "--data", data, "--output", output)
    assert command(capsys, *words)[0] == 0
    assert calls == ["read", "read", "encode", "encode", "encode"] * 3


def test_errors_of_bad_input(tmp_path):
    with pytest.raises(UserError, match=r"holds no index\.html"):
        ab_study.server(tmp_path, "127.0.0.1", 0)
    with pytest.raises(UserError, match=r"holds no key\.json"):
        ab_study.tally(tmp_path, [])
    with pytest.raises(UserError, match="no pair of clips to show"):
        ab_study.write(tmp_path / "study", [], ("a", "b"))
    ab_study.write(tmp_path / "study", questions(1), ("a", "b"))
    (tmp_path / "v.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match=r"is not a CSV of answers .*its columns are x, y"):
        ab_study.tally(tmp_path / "study", [tmp_path / "v.csv"])


def test_the_report_opens_in_a_browser(world, capsys, tmp_path):
    data, edited, output = world
    words = ("--edited", edited, "--data", data, "--output", output)
    assert command(capsys, *words)[0] == 0
    with browser.page() as page:
        page.goto((output / "index.html").as_uri())
        page.wait_for_function("() => Array.from(document.images).every(i => i.complete)")
        assert browser.pictures(page) == [True] * 4 and page.errors == []
        assert page.locator("#frame_difference").is_visible()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
