"""Edit instructions: by a chat model behind a real, failing HTTP server, by rules, from files."""

import dataclasses
import itertools
import json
import socket
import time

import pytest

from ivid2vid_jax.errors import UserError
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
from ivid2vid_jax.synthesis.manifest import Manifest, in_shard, run_pending
from tests.support.chat_server import CAPTION, EDITS, Server, completion

GOOD = completion(json.dumps(EDITS))


@pytest.fixture
def serve():
    servers = []

    def start(*script):
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_good_reply_is_two_proposals(serve):
    server = serve(GOOD)
    status, facts = by_chat(server.chat(), CAPTION, ["object", "weather"])
    assert status == "accepted"
    assert facts["proposals"] == [dataclasses.asdict(Proposal(**edit)) for edit in EDITS]
    assert facts["model"] == "served-model"
    assert facts["tokens_in"] == 100
    assert facts["prompt"] == instructions.prompt_hash()
    [(_, request)] = server.requests
    assert request["model"] == "asked-model"
    expected = f"Caption: {CAPTION}\nEdit types: object, weather"
    assert request["messages"][-1]["content"] == expected


@pytest.mark.parametrize(
    ("entry", "requests", "status", "reason"),
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
def test_one_failure_is_retried_or_reported(serve, entry, requests, status, reason):
    server = serve(entry, GOOD)
    result, facts = by_chat(server.chat(), CAPTION, ["object", "weather"])
    assert (result, len(server.requests)) == (status, requests), facts
    assert reason in facts.get("reason", ""), facts


@pytest.mark.parametrize(
    ("entry", "requests", "status", "reason"),
    [
        (500, 2, "failed", "status 500"),
        (429, 2, "failed", "status 429"),
        ("hang", 2, "failed", "within 1 s"),
        ("drip", 2, "failed", "within 1 s"),
        (completion("never JSON"), 3, "rejected", "no reply of 3 could be read"),
    ],
    ids=str,
)
def test_lasting_failures_end_in_time(serve, entry, requests, status, reason):
    server, begin = serve(entry), time.monotonic()
    result, facts = by_chat(server.chat(), CAPTION, ["object"])
    assert (result, len(server.requests)) == (status, requests), facts
    assert reason in facts["reason"], facts
    assert time.monotonic() - begin < 6
    if status == "rejected":
        assert facts["unread"] == ["never JSON"] * 3
        assert server.requests[1][1]["messages"][-1]["content"].startswith("this is no JSON")


def test_a_lost_connection_after_an_answer_fails_one_clip(serve):
    server = serve(GOOD, "drop")
    chat = server.chat()
    assert by_chat(chat, CAPTION, ["object"])[0] == "accepted"
    status, facts = by_chat(chat, CAPTION, ["object"])
    assert (status, len(server.requests)) == ("failed", 3)
    assert "cannot be reached" in facts["reason"]


@pytest.mark.parametrize(("entry", "pauses"), [(429, (0.3, 0.3)), (500, (0.5, 1.0))])
def test_pauses_are_the_servers_or_grow(serve, entry, pauses):
    server = serve(entry, entry, GOOD)
    server.chat(retries=2).ask(instructions.messages(CAPTION, ["object"]))
    times = [time for time, _ in server.requests]
    actual = [after - before for before, after in itertools.pairwise(times)]
    assert actual == pytest.approx(pauses, abs=0.2)


def test_requests_are_spaced(serve):
    server = serve(GOOD)
    chat = server.chat(per_minute=600)
    for _ in range(4):
        chat.ask([{"role": "user", "content": "x"}])
    assert server.requests[-1][0] - server.requests[0][0] > 0.25


def test_retries_are_spaced_too(serve):
    """Every attempt counts for the limit per minute, not only the first one of a request."""
    server = serve(429, GOOD)
    server.chat(per_minute=40).ask([{"role": "user", "content": "x"}])
    (first, _), (second, _) = server.requests
    assert second - first > 1, "1.5 s, with 0.3 s asked for by the server"


QUOTA = {
    "message": "You exceeded your current quota",
    "type": "insufficient_quota",
    "param": None,
    "code": "insufficient_quota",
}


@pytest.mark.parametrize(
    ("entry", "requests", "message"),
    [
        (401, 1, "refuses the key of OPENAI_API_KEY"),
        (404, 1, "knows no model 'asked-model'"),
        ((429, {"error": QUOTA}), 1, r"the quota of OPENAI_API_KEY is used up \(You exceeded"),
        ("drop", 2, "cannot be reached .*, and has not answered at all"),
    ],
    ids=["key", "model", "quota", "address"],
)
def test_permanent_failures_end_the_stage(serve, tmp_path, entry, requests, message):
    server = serve(entry)
    chat, manifest = server.chat(), Manifest(tmp_path, "instructions")
    with pytest.raises(UserError, match=message):
        run_pending(manifest, {"a": "1", "b": "1"}, lambda id: by_chat(chat, CAPTION, ["object"]))
    assert not manifest.lines
    assert len(server.requests) in (requests, 2 * requests), "b may have been on its way"


def test_an_address_where_nobody_listens_ends_the_stage():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        chat = Chat(ChatConfig(base_url=url, retries=1, per_minute=1e6))
        with pytest.raises(UserError, match=r"--chat.base-url: .*cannot be reached"):
            by_chat(chat, CAPTION, ["object"])


def test_without_an_address_a_key_is_needed(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY; set it, or name a local server"):
        Chat(ChatConfig())


def test_a_restart_asks_for_the_failed_items_only(serve, tmp_path):
    """20 clips, some of which the server fails; a partial line of the manifest is removed."""
    ids = [f"clip{i:02d}" for i in range(20)]
    fingerprints = dict.fromkeys(ids, "1")
    server = serve(*[GOOD] * 7, *[500] * 4, *[GOOD] * 7, 400, GOOD)

    def work(id):
        return by_chat(server.chat(), f"{id}: {CAPTION}", ["object"])

    run_pending(Manifest(tmp_path, "instructions"), fingerprints, work)
    first = Manifest(tmp_path, "instructions")
    assert first.reasons(fingerprints) == {
        "failed: status 500 (no luck: 500)": 2,
        "failed: status 400 (no luck: 400)": 1,
    }
    failed = [id for id in ids if not first.is_done(id, "1")]
    assert len(failed) == 3
    assert len(first.accepted(fingerprints)) == 17
    with first.file.open("a") as lines:
        lines.write('{"id": "clip')
    count = len(server.requests)
    run_pending(Manifest(tmp_path, "instructions"), fingerprints, work, workers=3)
    questions = [body["messages"][-1]["content"] for _, body in server.requests[count:]]
    assert sorted(question.split(":")[1].strip() for question in questions) == failed
    lines = Manifest(tmp_path, "instructions").accepted(fingerprints)
    assert [line["id"] for line in lines] == ids


def test_shards_split_the_items_and_see_all_results(tmp_path):
    fingerprints = {f"clip{i}": "1" for i in range(40)}
    for index in range(3):
        items = {id: mark for id, mark in fingerprints.items() if in_shard(id, (index, 3))}
        assert 5 < len(items) < 25
        manifest = Manifest(tmp_path, "captions", (index, 3))
        run_pending(manifest, items, lambda id, index=index: ("accepted", {"by": index}))
    lines = Manifest(tmp_path, "captions").accepted(fingerprints)
    assert [line["id"] for line in lines] == sorted(fingerprints)
    assert {line["by"] for line in lines} == {0, 1, 2}
    assert len(list(tmp_path.iterdir())) == 3


def test_an_item_with_another_fingerprint_is_processed_again(tmp_path):
    processed = []

    def work(id):
        processed.append(id)
        return "accepted", {}

    for fingerprints in ({"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}):
        run_pending(Manifest(tmp_path, "captions"), fingerprints, work)
    assert processed == ["a", "b", "b"]
    lines = Manifest(tmp_path, "captions").accepted({"a": "2", "b": "2"})
    assert [line["id"] for line in lines] == ["b"]


def test_edit_types_are_asked_for_equally_often():
    types = [name for index in range(50) for name in instructions.target_types(index, 3)]
    assert {types.count(name) for name in instructions.TYPES} == {30}


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
def test_replies_without_proposals_are_malformed(text):
    with pytest.raises(Malformed):
        parse(text)


@pytest.mark.parametrize(
    "wrap", ["{}", "```json\n{}\n```", "Sure! Here you are:\n{}\nAnything else?", '{{"edits": {}}}']
)
def test_text_around_the_proposals_is_ignored(wrap):
    proposals = parse(wrap.format(json.dumps(EDITS)))
    assert [dataclasses.asdict(proposal) for proposal in proposals] == EDITS


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
def test_empty_edits_and_repetitions_are_refused(proposal, reason):
    accepted, refused = filter_proposals([Proposal(**EDITS[0]), proposal], CAPTION, 2)
    assert len(accepted) == 1
    assert reason in refused[0]["reason"]


def test_no_more_proposals_are_accepted_than_asked_for(serve):
    """Refused ones do not count; the surplus is recorded."""
    reply = completion(json.dumps([dict(EDITS[0], edited_caption=CAPTION), *EDITS]))
    status, facts = by_chat(serve(reply).chat(), CAPTION, ["weather"])
    assert status == "accepted"
    instructions = [proposal["instruction"] for proposal in facts["proposals"]]
    assert instructions == [EDITS[0]["instruction"]]
    reasons = [proposal["reason"].split(":")[0] for proposal in facts["refused"]]
    assert reasons == ["changes nothing", "more than the 1 asked for"]


CROSS = "a small striped green cross on a pink background"


@pytest.mark.parametrize(
    ("caption", "kind", "instruction", "edited_caption"),
    [
        (CAPTION, "object", "turn the car into a ", "drives along a street"),
        (CAPTION, "attribute", "make the car ", " car drives along a street"),
        (CAPTION, "background", "replace the street with a ", "a red car drives along a "),
        (CROSS, "background", "make the background ", "a small striped green cross on a "),
        (CROSS, "shape", "turn the cross into a ", "a small striped green "),
    ],
)
def test_rules_change_what_they_say(caption, kind, instruction, edited_caption):
    rows = {row for seed in range(20) for row in rules.proposals(caption, [kind], seed)}
    assert len(rows) > 2
    for actual_instruction, actual_caption, actual_kind in rows:
        assert instruction in actual_instruction
        assert edited_caption in actual_caption
        assert actual_caption != caption
        assert actual_kind == kind


def test_rules_adapt_the_article():
    assert rules.replace_word("a red car", 2, 5, "orange") == "an orange car"
    assert rules.replace_word("an orange car", 3, 9, "red") == "a red car"


def test_rules_repeat_by_seed_and_reject_captions_without_a_match():
    first, second = (by_rules(CAPTION, ["object", "style"], 3) for _ in range(2))
    assert first == second
    status, facts = by_rules("something", ["object"], 0)
    assert status == "rejected"
    assert facts["reason"] == "no edit fits the caption"


def test_both_spellings_of_a_prompt_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    row = dict(edit="make it snow", output="a snowy street")
    lines = [json.dumps({key: CAPTION} | row) for key in ("input", "caption")]
    file.write_text("\n".join(lines) + "\n\n")
    expected = (CAPTION, Proposal("make it snow", "a snowy street", "object"))
    assert list(instructions.from_file(file)) == [expected] * 2
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 1: needs input"):
        list(instructions.from_file(file))


def test_errors_are_one_line(serve):
    with pytest.raises(ChatError) as error:
        serve("<html>").chat(retries=0).ask([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value)
