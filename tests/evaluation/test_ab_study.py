"""The A/B page: blind, randomised, clicked through in a browser; its server; the count of the answers."""

import csv
import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from ivid2vid_jax import evaluate
from ivid2vid_jax.evaluation import ab_study, evaluate_clips
from ivid2vid_jax.evaluation.ab_study import COLUMNS, QUESTIONS, Question
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.intervals import wilson_interval
from tests.evaluation.test_evaluate_clips import save, world  # noqa: F401
from tests.support import browser
from tests.support.clips import static
from tests.support.command import run_command


def questions(count=3):
    return [
        Question.of(
            f"clip{i}",
            f"make it </script> {i}",
            static(2, 16),
            (np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8)),
            8.0,
        )
        for i in range(count)
    ]


@contextmanager
def serving(folder):
    found = ab_study.server(folder, "127.0.0.1", 0)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_address[1]}"
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def test_the_page_does_not_say_whose_a_clip_is(tmp_path):
    file = ab_study.write(tmp_path / "study", questions(40), ("runs/ours", "runs/theirs"), seed=1)
    text, key = file.read_text(), json.loads((tmp_path / "study" / "key.json").read_text())
    assert (
        "ours" not in text
        and "theirs" not in text
        and "clip0" not in text
        and "</script> 0" not in text
    )
    firsts = [pair["first"] for pair in key["pairs"]]
    assert 8 < firsts.count("runs/ours") < 32 and all(
        {pair["first"], pair["second"]} == {"runs/ours", "runs/theirs"} for pair in key["pairs"]
    )
    shown = json.loads(text.split("const pairs = ")[1].split(", questions = ")[0])
    black = [
        pair["first"] for pair, owner in zip(shown, firsts, strict=True) if owner == "runs/ours"
    ] + [pair["second"] for pair, owner in zip(shown, firsts, strict=True) if owner != "runs/ours"]
    assert (
        len(set(black)) == 1 and len({pair["first"] for pair in shown}) == 2
    )  # ours is the black clip, wherever it stands


def test_the_page_is_clicked_through(tmp_path):
    """Always the darker clip, which is ours: the answers that reach the server say so of every pair, whatever side it stood on."""
    ab_study.write(tmp_path / "study", questions(), ("ours", "theirs"))
    dark = """side => { const i = document.getElementById(side), c = document.createElement("canvas"); c.width = c.height = 1;
              const d = c.getContext("2d"); d.drawImage(i, 0, 0, 1, 1); return d.getImageData(0, 0, 1, 1).data[0] < 128; }"""
    with serving(tmp_path / "study") as address, browser.page() as page:
        page.goto(address)
        assert page.locator("#count").inner_text() == "3" and not page.locator("#task").is_visible()
        page.click("#begin")
        seen = set()
        for number in range(3):
            page.wait_for_function(
                "() => Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)"
            )
            assert (
                all(browser.pictures(page))
                and page.locator("#progress").inner_text() == f"{number + 1} of 3"
                and page.locator("#next").is_disabled()
            )
            seen.add(page.locator("#instruction").inner_text())
            side = "left" if page.evaluate(dark, "left") else "right"
            assert page.evaluate(dark, "left") != page.evaluate(dark, "right")
            for question in QUESTIONS:
                assert page.locator("#next").is_disabled()
                page.click(f"#{question}-{'same' if question == 'quality' else side}")
            page.click("#next")
        page.wait_for_function(
            "() => document.getElementById('sent').textContent.includes('have been kept')"
        )
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "download.csv")
        assert seen == {f"make it </script> {i}" for i in range(3)} and page.errors == []
    kept = list((tmp_path / "study" / "answers").glob("*.csv"))
    assert len(kept) == 1 and kept[0].read_text() == (tmp_path / "download.csv").read_text()
    rows = list(csv.DictReader(open(kept[0])))
    assert (
        len(rows) == 9
        and {row["pair"] for row in rows} == {"0", "1", "2"}
        and tuple(rows[0]) == COLUMNS
    )
    text = ab_study.tally(tmp_path / "study", kept)
    assert (
        text.startswith("1 participants, 3 pairs")
        and f"| {QUESTIONS['text']} | 3 | 0 | 0 | 100% [44, 100] |" in text
        and f"| {QUESTIONS['quality']} | 0 | 0 | 3 |  |" in text
    )


def test_the_server_takes_answers_and_nothing_else(tmp_path):
    ab_study.write(tmp_path / "study", questions(), ("ours", "theirs"))
    good = ",".join(COLUMNS) + "\n" + "0123456789abcdef,0,text,first,second,1.0\n"

    def post(address, text):
        try:
            with urllib.request.urlopen(
                urllib.request.Request(address, text.encode(), method="POST")
            ) as reply:
                return reply.status
        except (
            urllib.error.URLError
        ) as error:  # too large: the server hangs up before it has read all
            return getattr(error, "code", 413)

    with serving(tmp_path / "study") as address:
        assert post(f"{address}/answers", good) == 200 and post(f"{address}/answers", good) == 200
        assert [
            post(f"{address}/answers", text)
            for text in (
                "a,b\n",
                good.replace("0123456789abcdef", "../../x"),
                good + good[len(",".join(COLUMNS)) + 1 :].replace("0", "1"),
            )
        ] == [400] * 3
        assert (
            post(f"{address}/key.json", good) == 404
            and post(f"{address}/answers", "x" * (ab_study.MOST + 1)) == 413
        )
        for path in ("/key.json", "/../key.json", "/answers/0123456789abcdef.csv"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + path)
    assert [file.name for file in (tmp_path / "study" / "answers").iterdir()] == [
        "0123456789abcdef.csv"
    ]


def test_the_command_makes_the_page_and_counts(world, capsys):  # noqa: F811
    data, edited, output = world
    against = output.with_name("theirs")
    save(against / "clip1", static(3, 32))
    words = ("--edited", edited, "--against", against, "--data", data, "--output", output)
    code, err, out = run_command(capsys, evaluate.EvaluateArgs, evaluate.run, *words)
    assert (
        code == 0
        and out.startswith("1 pairs, 2 left out; open ")
        and (output / "index.html").is_file()
    )
    votes = output / "v.csv"
    votes.write_text(",".join(COLUMNS) + "\n" + "0123456789abcdef,0,text,first,second,1.0\n")
    key = json.loads((output / "key.json").read_text())["pairs"][0]
    code, _, out = run_command(
        capsys, evaluate.EvaluateArgs, evaluate.run, "--votes", votes, "--output", output
    )
    ours, theirs = (1, 0) if key["first"] == str(edited) else (0, 1)
    assert code == 0 and f"| {QUESTIONS['text']} | {ours} | {theirs} | 0 |" in out
    code, err, _ = run_command(capsys, evaluate.EvaluateArgs, evaluate.run, *words)
    assert code == 2 and "is not empty; name a new folder" in err
    votes.write_text(votes.read_text().replace(",0,text", ",7,text"))
    code, err, _ = run_command(
        capsys, evaluate.EvaluateArgs, evaluate.run, "--votes", votes, "--output", output
    )
    assert code == 2 and "row 2 is no answer to" in err


def test_pairs_not_answers_are_counted_and_each_answer_once(tmp_path):
    """Two pairs: nine people prefer ours in the first, one in the second; one sends the same file twice, another changes an answer."""
    ab_study.write(tmp_path / "study", questions(2), ("ours", "theirs"))
    owners = {
        pair["pair"]: pair
        for pair in json.loads((tmp_path / "study" / "key.json").read_text())["pairs"]
    }

    def rows(person, answers):
        file = tmp_path / f"{person}-{len(list(tmp_path.glob('*.csv')))}.csv"
        choice = {
            pair: next(side for side in ("first", "second") if owners[pair][side] == whose)
            for pair, whose in answers.items()
        }
        file.write_text(
            "\n".join(
                [
                    ",".join(COLUMNS),
                    *(f"{person},{pair},text,{side},first,1.0" for pair, side in choice.items()),
                ]
            )
            + "\n"
        )
        return file

    files = [rows(f"p{i}", {0: "ours"}) for i in range(9)] + [rows("x", {0: "theirs", 1: "ours"})]
    files += [files[0], rows("x", {0: "ours"}), rows("y", {0: "theirs"})]  # x has thought again
    text = ab_study.tally(tmp_path / "study", files)
    low, high = wilson_interval(2 * (10 / 11 + 1) / 2, 2)
    assert text.startswith("11 participants, 2 pairs; shares are means over pairs")
    assert f"| {QUESTIONS['text']} | 11 | 1 | 0 | 95% [{100 * low:.0f}, {100 * high:.0f}] |" in text


def test_clips_are_not_held_for_the_page(world, capsys, monkeypatch):  # noqa: F811
    """Each pair is made small before the next is read."""
    data, edited, output = world
    did, read, animate = [], evaluate_clips.read_pair, ab_study.animation
    monkeypatch.setattr(
        evaluate_clips, "read_pair", lambda *args: did.append("read") or read(*args)
    )
    monkeypatch.setattr(ab_study, "animation", lambda *args: did.append("encode") or animate(*args))
    words = ("--edited", edited, "--against", edited, "--data", data, "--output", output)
    assert run_command(capsys, evaluate.EvaluateArgs, evaluate.run, *words)[0] == 0
    assert did == ["read", "read", "encode", "encode", "encode"] * 3


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no index.html"):
        ab_study.server(tmp_path, "127.0.0.1", 0)
    with pytest.raises(UserError, match="holds no key.json"):
        ab_study.tally(tmp_path, [])
    with pytest.raises(UserError, match="no pair of clips can be shown"):
        ab_study.write(tmp_path / "study", [], ("a", "b"))
    ab_study.write(tmp_path / "study", questions(1), ("a", "b"))
    (tmp_path / "v.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match="is not a CSV of answers .*its columns are x, y"):
        ab_study.tally(tmp_path / "study", [tmp_path / "v.csv"])


def test_the_report_opens_in_a_browser(world, capsys, tmp_path):  # noqa: F811
    data, edited, output = world
    assert (
        run_command(
            capsys,
            evaluate.EvaluateArgs,
            evaluate.run,
            "--edited",
            edited,
            "--data",
            data,
            "--output",
            output,
        )[0]
        == 0
    )
    with browser.page() as page:
        page.goto((output / "index.html").as_uri())
        page.wait_for_function("() => Array.from(document.images).every(i => i.complete)")
        shown = browser.pictures(page)
        assert (
            shown == [True] * 4
            and page.errors == []
            and page.locator("#frame_difference").is_visible()
        )
        page.screenshot(path=tmp_path / "page.png", full_page=True)
