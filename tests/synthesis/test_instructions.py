"""Instructions by a chat model behind a real HTTP server that misbehaves in every way, by rules, and from files."""

import dataclasses
import json
import socket
import time

import pytest

from ivid2vid_jax.synthesis import instructions, rules
from ivid2vid_jax.synthesis.chat import Chat, ChatConfig, ChatError
from ivid2vid_jax.synthesis.instructions import (
    Malformed,
    Proposal,
    by_chat,
    by_rules,
    filter_proposals,
    parse,
)
from ivid2vid_jax.synthesis.manifest import Manifest, run_pending, shard_index
from ivid2vid_jax.utils.errors import UserError
from tests.support.chat_server import CAPTION, EDITS, Server, completion


@pytest.fixture
def serve():
    servers = []

    def start(*script):
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop.set()
        server.http.shutdown()


GOOD = completion(json.dumps(EDITS))


def test_a_good_reply_is_two_proposals(serve):
    server = serve(GOOD)
    status, facts = by_chat(server.chat(), CAPTION, ["object", "weather"])
    assert status == "accepted" and facts["proposals"] == [
        dict(each) for each in map(lambda e: dataclasses.asdict(Proposal(**e)), EDITS)
    ]
    assert (
        facts["model"] == "served-model"
        and facts["tokens_in"] == 100
        and facts["prompt"] == instructions.prompt_hash()
    )
    (_, request), *more = server.asked
    assert (
        not more
        and request["model"] == "asked-model"
        and request["messages"][-1]["content"] == f"Caption: {CAPTION}\nEdit types: object, weather"
    )


@pytest.mark.parametrize(
    ("act", "asked", "status", "reason"),
    [
        (429, 2, "accepted", ""),
        (500, 2, "accepted", ""),
        ("drop", 2, "accepted", ""),
        ("hang", 2, "accepted", ""),
        ("drip", 2, "accepted", ""),
        ("<html>", 2, "accepted", ""),
        (completion("no JSON here"), 2, "accepted", ""),
        (completion('[{"instruction": 3}]'), 2, "accepted", ""),
        (400, 1, "failed", "status 400"),
        (completion(None, refusal="I will not"), 1, "failed", "I will not"),
        (completion(""), 1, "failed", "empty reply"),
        ({"choices": []}, 1, "failed", "without choices"),
    ],
    ids=str,
)
def test_one_misbehaviour_is_got_over_or_told(serve, act, asked, status, reason):
    server = serve(act, GOOD)
    found, facts = by_chat(server.chat(), CAPTION, ["object", "weather"])
    assert (found, len(server.asked)) == (status, asked) and reason in facts.get("reason", ""), (
        facts
    )


@pytest.mark.parametrize(
    ("act", "asked", "status", "reason"),
    [
        (500, 2, "failed", "status 500"),
        (429, 2, "failed", "status 429"),
        ("hang", 2, "failed", "within 1 s"),
        ("drip", 2, "failed", "within 1 s"),
        (completion("never JSON"), 3, "rejected", "no reply of 3 could be read"),
    ],
    ids=str,
)
def test_a_server_that_stays_bad_is_given_up_in_time(serve, act, asked, status, reason):
    server, begin = serve(act), time.monotonic()
    found, facts = by_chat(server.chat(), CAPTION, ["object"])
    assert (found, len(server.asked)) == (status, asked) and reason in facts["reason"], facts
    assert time.monotonic() - begin < 6
    if status == "rejected":
        assert facts["unread"] == ["never JSON"] * 3 and server.asked[1][1]["messages"][-1][
            "content"
        ].startswith("this is no JSON")


def test_a_server_that_is_gone_after_it_has_answered_fails_a_clip_alone(serve):
    server = serve(GOOD, "drop")
    chat = server.chat()
    assert by_chat(chat, CAPTION, ["object"])[0] == "accepted"
    found, facts = by_chat(chat, CAPTION, ["object"])
    assert (found, len(server.asked)) == ("failed", 3) and "cannot be reached" in facts["reason"]


def test_pauses_are_the_servers_or_grow(serve):
    for act, pauses in ((429, (0.3, 0.3)), (500, (0.5, 1.0))):
        server = serve(act, act, GOOD)
        server.chat(retries=2).ask(instructions.messages(CAPTION, ["object"]))
        times = [when for when, _ in server.asked]
        assert [
            later - sooner for sooner, later in zip(times, times[1:], strict=False)
        ] == pytest.approx(pauses, abs=0.2)


def test_requests_are_spaced(serve):
    server = serve(GOOD)
    chat = server.chat(per_minute=600)
    for _ in range(4):
        chat.ask([{"role": "user", "content": "x"}])
    assert server.asked[-1][0] - server.asked[0][0] > 0.25


QUOTA = (
    429,
    {
        "error": {
            "message": "You exceeded your current quota",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
        }
    },
)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (401, "refuses the key of OPENAI_API_KEY"),
        (404, "knows no model 'asked-model'"),
        (QUOTA, "the quota of OPENAI_API_KEY is used up .You exceeded"),
        ("drop", "cannot be reached .*, and has not answered at all"),
    ],
    ids=str,
)
def test_what_no_further_request_can_change_ends_the_stage(serve, tmp_path, act, message):
    chat = serve(act).chat()
    manifest = Manifest(tmp_path, "instructions")
    with pytest.raises(UserError, match=message):
        run_pending(manifest, {"a": "1", "b": "1"}, lambda id: by_chat(chat, CAPTION, ["object"]))
    assert not manifest.lines


def test_an_address_where_nobody_listens_ends_the_stage():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        chat = Chat(
            ChatConfig(
                base_url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", retries=1, per_minute=1e6
            )
        )
        with pytest.raises(UserError, match="--chat.base-url: .*cannot be reached"):
            by_chat(chat, CAPTION, ["object"])


def test_without_an_address_a_key_is_needed(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY; set it, or name a local server"):
        Chat(ChatConfig())


def test_nothing_is_lost_or_asked_twice(serve, tmp_path):
    """20 clips, a server that fails for some of them: at the next start those alone are asked for again; a torn line is mended."""
    ids = [f"clip{i:02d}" for i in range(20)]
    marks = dict.fromkeys(ids, "1")
    server = serve(*[GOOD] * 7, *[500] * 4, *[GOOD] * 7, 400, GOOD)
    run_pending(
        Manifest(tmp_path, "instructions"),
        marks,
        lambda id: by_chat(server.chat(), f"{id}: {CAPTION}", ["object"]),
    )
    first = Manifest(tmp_path, "instructions")
    assert first.reasons(marks) == {
        "failed: status 500 (no luck: 500)": 2,
        "failed: status 400 (no luck: 400)": 1,
    }
    failed = [id for id in ids if not first.is_done(id, "1")]
    assert len(failed) == 3 and len(first.accepted(marks)) == 17
    with open(first.file, "a") as lines:
        lines.write('{"id": "clip')
    before = len(server.asked)
    second = Manifest(tmp_path, "instructions")
    run_pending(
        second, marks, lambda id: by_chat(server.chat(), f"{id}: {CAPTION}", ["object"]), workers=3
    )
    again = [
        request["messages"][-1]["content"].split(":")[1].strip()
        for _, request in server.asked[before:]
    ]
    assert (
        sorted(again) == failed
        and [line["id"] for line in Manifest(tmp_path, "instructions").accepted(marks)] == ids
    )


def test_shards_share_the_items_and_see_each_others(tmp_path):
    marks = {f"clip{i}": "1" for i in range(40)}
    for index in range(3):
        mine = {id: mark for id, mark in marks.items() if shard_index(id, (index, 3))}
        assert 5 < len(mine) < 25
        run_pending(
            Manifest(tmp_path, "captions", (index, 3)), mine, lambda id: ("accepted", {"by": index})
        )
    lines = Manifest(tmp_path, "captions").accepted(marks)
    assert [line["id"] for line in lines] == sorted(marks) and {line["by"] for line in lines} == {
        0,
        1,
        2,
    }
    assert len(list(tmp_path.iterdir())) == 3


def test_an_item_is_done_again_where_what_decides_it_has_changed(tmp_path):
    done = []

    def work(id):
        done.append(id)
        return "accepted", {}

    for marks in ({"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}):
        run_pending(Manifest(tmp_path, "captions"), marks, work)
    assert done == ["a", "b", "b"]
    assert [
        line["id"] for line in Manifest(tmp_path, "captions").accepted({"a": "2", "b": "2"})
    ] == ["b"]


def test_edit_types_take_turns():
    asked = [name for index in range(50) for name in instructions.target_types(index, 3)]
    assert {asked.count(name) for name in instructions.TYPES} == {30}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '["x"]',
        '[{"instruction": "a", "edited_caption": "b"}]',
        "[" * 100000,
        '{"instruction": ""}',
    ],
)
def test_replies_that_hold_no_proposals(text):
    with pytest.raises(Malformed):
        parse(text)


@pytest.mark.parametrize(
    "wrap", ["{}", "```json\n{}\n```", "Sure! Here you are:\n{}\nAnything else?", '{{"edits": {}}}']
)
def test_replies_are_read_through_what_models_put_around_them(wrap):
    assert [dataclasses.asdict(each) for each in parse(wrap.format(json.dumps(EDITS)))] == EDITS


@pytest.mark.parametrize(
    ("proposal", "reason"),
    [
        (
            Proposal("make the car red", "A red car drives along the street.", "attribute"),
            "changes nothing",
        ),
        (Proposal("please " * 21, "a bus", "object"), "more than 20 words"),
        (Proposal("zoom in", "a close view of a red car", "camera"), "'camera' is unknown"),
        (
            Proposal("turn the red car into a bus", "a bus on a street", "object"),
            "nearly the same as 'turn the car into a bus'",
        ),
        (Proposal("swap it", "a red bus drives along a street", "object"), "nearly the same"),
    ],
)
def test_no_ops_and_repetitions_are_refused(proposal, reason):
    taken, refused = filter_proposals([Proposal(**EDITS[0]), proposal], CAPTION, 2)
    assert len(taken) == 1 and reason in refused[0]["reason"]


def test_no_more_are_taken_than_asked_for(serve):
    """Counted after the others are refused; what is left over is told."""
    status, facts = by_chat(
        serve(completion(json.dumps([dict(EDITS[0], edited_caption=CAPTION), *EDITS]))).chat(),
        CAPTION,
        ["weather"],
    )
    assert status == "accepted" and [each["instruction"] for each in facts["proposals"]] == [
        EDITS[0]["instruction"]
    ]
    assert [each["reason"].split(":")[0] for each in facts["refused"]] == [
        "changes nothing",
        "more than the 1 asked for",
    ]


def test_rules_change_what_they_say():
    for caption, kind, order, after in (
        (CAPTION, "object", "turn the car into a ", "drives along a street"),
        (CAPTION, "attribute", "make the car ", " car drives along a street"),
        (CAPTION, "background", "replace the street with a ", "a red car drives along a "),
        (
            "a small striped green cross on a pink background",
            "background",
            "make the background ",
            "a small striped green cross on a ",
        ),
        (
            "a small striped green cross on a pink background",
            "shape",
            "turn the cross into a ",
            "a small striped green ",
        ),
    ):
        found = {rule for seed in range(20) for rule in rules.proposals(caption, [kind], seed)}
        assert len(found) > 2
        assert all(
            order in instruction and after in edited and edited != caption and type_ == kind
            for instruction, edited, type_ in found
        ), found
    assert (
        rules.replaced("a red car", 2, 5, "orange") == "an orange car"
        and rules.replaced("an orange car", 3, 9, "red") == "a red car"
    )


def test_rules_repeat_by_seed_and_say_where_nothing_fits():
    assert by_rules(CAPTION, ["object", "style"], 3) == by_rules(CAPTION, ["object", "style"], 3)
    status, facts = by_rules("something", ["object"], 0)
    assert status == "rejected" and facts["reason"] == "no edit fits the caption"


def test_both_spellings_of_a_prompt_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    row = dict(edit="make it snow", output="a snowy street")
    file.write_text(
        "\n".join(json.dumps({key: CAPTION} | row) for key in ("input", "caption")) + "\n\n"
    )
    assert (
        list(instructions.from_file(file))
        == [(CAPTION, Proposal("make it snow", "a snowy street", "object"))] * 2
    )
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 1: needs input"):
        list(instructions.from_file(file))


def test_errors_are_one_line(serve):
    with pytest.raises(ChatError) as error:
        serve("<html>").chat(retries=0).ask([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value)
