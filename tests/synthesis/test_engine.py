"""Whole runs of the data engine: on the shapes world and on real clips."""

import dataclasses
import json

import numpy as np
import pytest

from ivid2vid_jax import synthesize
from ivid2vid_jax.data import shapes
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.chat import ChatConfig
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.config import STAGES
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.run_stages import run_stages
from ivid2vid_jax.synthesis.sources import ShapesSource
from tests.support import browser, factory
from tests.support.chat_server import EDITS, Server, completion
from tests.synthesis.runs import manifest_lines, read_triplets, run_output, write_json_lines
from tests.video.test_video import write as write_video


def test_the_shapes_world_from_nothing_to_triplets(config, capsys):
    output = run_output(capsys, config)
    counts = dict(clips=4, captions=4, instructions=4, edits=8, scores=8)
    for stage, count in counts.items():
        assert f"{stage}: {count} accepted, 0 rejected, 0 failed, 0 to do" in output
    triplets = read_triplets(config)
    assert len(triplets) == len({triplet.id for triplet in triplets}) == 8
    for triplet in triplets:
        spec = shapes.Spec.from_json(triplet.provenance)
        np.testing.assert_array_equal(triplet.source, shapes.render(spec.scene, 16, 2))
        assert triplet.instruction == shapes.instruction(spec.scene, spec.edit)
        assert triplet.edited_caption == shapes.caption(spec.edited)
        assert triplet.edited.shape == triplet.source.shape
        assert (triplet.edited != triplet.source).any()
        assert not shapes.held_out(spec.scene, spec.edit)
        assert spec.edit.kind != "identity"
    page = (config.output / "index.html").read_text()
    assert page.count("<section>") == page.count("<span>source</span><span>edit</span>") == 8
    assert page.count("<img") == 9
    assert all(f"<h3>{triplet.instruction}</h3>" in page for triplet in triplets)
    statistics = json.loads((config.output / "statistics.json").read_text())
    assert statistics["triplets"] == 8 == sum(statistics["edit_types"].values())
    assert statistics["truth"]["edits that pass"]["count"] == 8

    files = [*(config.output / "dataset").iterdir(), *config.output.glob("*.jsonl")]
    times = [path.stat().st_mtime_ns for path in files]
    run_output(capsys, config)
    assert [path.stat().st_mtime_ns for path in files] == times, "a second run does nothing"


def test_the_page_groups_rejections_and_fits_a_phone(config, capsys):
    """Only the edit with the highest image score is accepted: the others miss one criterion."""
    run = dataclasses.replace(config, editor="truth", base="/nowhere")
    run_output(capsys, run)
    scores = [line["scores"]["image"] for line in manifest_lines(run.output, "scores")]
    threshold = dataclasses.replace(run.filter, image=max(scores))
    output = run_output(capsys, dataclasses.replace(run, filter=threshold))
    rejected = sum(score < max(scores) for score in scores)
    assert rejected and f"scores: {8 - rejected} accepted, {rejected} rejected" in output
    statistics = json.loads((run.output / "statistics.json").read_text())
    criterion = f"image below {max(scores)}"
    assert statistics["stages"]["scores"]["others"] == {f"rejected: {criterion}": rejected}
    row = f"<td>scores</td><td>rejected</td><td>{criterion}</td><td>{rejected}</td>"
    assert row in (run.output / "index.html").read_text()
    with browser.page() as page:
        page.set_viewport_size({"width": 400, "height": 800})
        page.goto((run.output / "index.html").as_uri())
        assert all(browser.pictures(page)) and page.errors == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_true_editor_makes_true_edits_without_a_base(config, capsys):
    """The other stages then lose nothing but what the filter rejects."""
    run = dataclasses.replace(config, editor="truth", base="/nowhere", count=6)
    assert "edits: 12 accepted" in run_output(capsys, run)
    assert "chip-hours" not in run_output(capsys, dataclasses.replace(run, estimate=True))
    for triplet in read_triplets(run):
        spec = shapes.Spec.from_json(triplet.provenance)
        np.testing.assert_array_equal(triplet.edited, shapes.render(spec.edited, 16, 2))


def test_edits_by_rules_are_judged_too(config):
    """A rule's edit is recognised by its caption; one that this world lacks does not pass."""
    run = dataclasses.replace(config, instructions="rules", count=12)
    synthesize.run(run)
    truth = json.loads((run.output / "statistics.json").read_text())["truth"]
    possible = [each for each in read_triplets(run) if each.provenance.startswith("{")]
    total = truth["edits that pass"]["count"]
    assert len(possible) == round(truth["edits of this world"]["share"] * total)
    assert 0 < len(possible) < total
    for triplet in possible:
        spec = shapes.Spec.from_json(triplet.provenance)
        assert triplet.source_caption == shapes.caption(spec.scene)
        assert triplet.edited_caption == shapes.caption(spec.edited)
        assert spec.scene != spec.edited
        assert not any(word in triplet.instruction for word in ("snow", "watercolor", "cartoon"))


def test_clips_of_the_shapes_world_come_with_several_edits(config):
    source = ShapesSource(dataclasses.replace(config, per_clip=4, count=40), config.output)
    for id in source.fingerprints():
        _, facts = source.make(id)
        specs = [shapes.Spec.from_json(text) for text in facts["clips"][0]["specs"]]
        assert len({spec.edit.kind for spec in specs}) == 4
        assert len({spec.scene for spec in specs}) == 1
        for spec in specs:
            triplet = shapes.triplet(spec)
            assert not shapes.held_out(spec.scene, spec.edit)
            assert (triplet.source != triplet.edited).any()


def test_refused_proposals_leave_room_for_others(config, capsys, tmp_path):
    run_output(capsys, dataclasses.replace(config, stages=("clips",)))
    rows = [
        ("do nothing", "{}"),
        ("make it snow", "{} in the snow"),
        ("make it night", "{} at night"),
        ("make it rain", "{} in the rain"),
    ]
    captions = Engine(config).captions.given.values()
    write_json_lines(
        tmp_path / "edits.jsonl",
        (
            {"input": caption, "edit": instruction, "output": edited.format(caption)}
            for caption in captions
            for instruction, edited in rows
        ),
    )
    instructions = str(tmp_path / "edits.jsonl")
    run_output(capsys, dataclasses.replace(config, instructions=instructions, stages=STAGES[1:3]))
    for line in manifest_lines(config.output, "instructions"):
        accepted = [proposal["instruction"] for proposal in line["proposals"]]
        assert accepted == ["make it snow", "make it night"]
        assert [proposal["reason"] for proposal in line["refused"]] == [
            "changes nothing: the edited caption is the caption",
            "more than the 2 asked for",
        ]


def test_scores_dataset_and_estimate_do_not_load_the_base(config, capsys, monkeypatch):
    run_output(capsys, config)
    monkeypatch.setattr(
        "ivid2vid_jax.inference.pipeline.load", lambda *_, **__: pytest.fail("the base is loaded")
    )
    scored_again = dataclasses.replace(
        config, stages=("scores", "write"), filter=dataclasses.replace(config.filter, image=-2.0)
    )
    output = run_output(capsys, scored_again)
    assert "scores: 8 accepted" in output
    assert "write: 8 triplets" in output
    settings = SharedNoiseConfig(sampling=3, inversion=2)
    run = dataclasses.replace(config, count=4, estimate=True, shared_noise=settings)
    assert "PFLOP" in run_output(capsys, run)


def test_clip_sizes_that_the_base_cannot_take_are_refused_at_once(config):
    run = dataclasses.replace(config, clips=dataclasses.replace(config.clips, size=17))
    message = "clips of 17x17 pixels: .* takes multiples of 2 alone; cut them with .*--clips.size"
    with pytest.raises(UserError, match=message):
        run_stages(Engine(run))
    assert not (config.output / "clips").exists()


def test_estimates_leave_out_clips_without_captions(config, capsys, tmp_path):
    file = tmp_path / "captions.jsonl"
    captions = CaptionsConfig(source=str(file))
    run = dataclasses.replace(config, captions=captions, instructions="rules")
    estimate = dataclasses.replace(run, estimate=True)
    file.write_text("")
    run_output(capsys, dataclasses.replace(run, stages=("clips",)))
    expected = "to do: instructions for 4 of them, 8 edits of 4"
    assert expected in run_output(capsys, estimate)
    write_json_lines(file, [{"id": "shapes-1-000000", "caption": "a red dog on a beach"}])
    run_output(capsys, dataclasses.replace(run, stages=("captions",)))
    expected = "to do: instructions for 1 of them, 2 edits of 1"
    assert expected in run_output(capsys, estimate)
    assert "4 edits of 1" in run_output(capsys, dataclasses.replace(estimate, samples=2))


def test_near_duplicates_are_left_out_and_reported(config, capsys, tmp_path):
    videos = tmp_path / "videos"
    (videos / "more").mkdir(parents=True)
    film = shapes.triplet(shapes.sample_spec(3, 0, kinds=("identity",), size=64, frames=8)).source
    names = ("a.mp4", "more/b.mp4")
    for name in names:
        write_video(videos / name, film, rate=8)
    captions = tmp_path / "captions.jsonl"
    write_json_lines(captions, ({"id": id, "caption": "a red dog on a beach"} for id in names))
    run = dataclasses.replace(
        config,
        videos=str(videos),
        captions=CaptionsConfig(source=str(captions)),
        instructions="rules",
        clips=ClipsConfig(frames=4, size=16, least=64, per_video=1),
    )
    output = run_output(capsys, run)
    assert "clips: 2 accepted" in output
    assert "1 clips are near-duplicates" in output
    assert "more%2Fb.mp4-0 of a.mp4-0" in output
    assert "captions: 1 accepted" in output
    statistics = json.loads((run.output / "statistics.json").read_text())
    assert statistics["repeats"] == {"more%2Fb.mp4-0": "a.mp4-0"}
    assert "more%2Fb.mp4-0" in (run.output / "index.html").read_text()


def test_the_best_of_several_samples_is_kept(config, capsys):
    run_output(capsys, config)
    single = Engine(config).edits.edits
    run = dataclasses.replace(config, samples=3, filter=dataclasses.replace(config.filter, keep=1))
    output = run_output(capsys, run)
    edits = Engine(run).edits.edits
    assert len(edits) == 24
    assert {id: edits[id] for id in single} == single, "the first sample is the single one"
    assert "edits: 24 accepted" in output
    assert "write: 8 triplets" in output
    assert "16 left out" in output
    assert len(manifest_lines(config.output, "edits")) == 24, "the first samples are not repeated"
    scores = {line["id"]: line["scores"] for line in manifest_lines(config.output, "scores")}
    kept = {triplet.id for triplet in read_triplets(run)}
    assert len(kept) == 8
    reason = "1 edits by the same instruction have a higher direction score"
    row = f"<td>write</td><td>left out</td><td>{reason}</td><td>16</td>"
    assert row in (config.output / "index.html").read_text()
    assert not kept <= set(single)
    for id in single:
        samples = [id, f"{id}-1", f"{id}-2"]
        assert sorted(other for other in scores if other.startswith(id)) == samples
        assert max(samples, key=lambda sample: scores[sample]["direction"]) in kept
        assert len({edits[sample].seed for sample in samples}) == 3
        clips = [np.load(config.output / "edits" / f"{sample}.npy") for sample in samples]
        differences = [
            np.abs(clips[i].astype(int) - clips[i - 1].astype(int)).max() for i in range(3)
        ]
        assert min(differences) > 1


@pytest.mark.slow
def test_real_clips_through_every_stage(config, capsys, car, skiing, tmp_path):
    """Random BLIP, a chat server on loopback, Tune-A-Video on a random base."""
    server = Server(completion(json.dumps(EDITS)), 500, completion(json.dumps(EDITS)))
    run = dataclasses.replace(
        config,
        videos=str(car.parent),
        instructions="chat",
        editor="tune_a_video",
        tune_a_video=TuneAVideoConfig(steps=2, inversion=2, sampling=2),
        licence="CC-BY-4.0",
        clips=ClipsConfig(frames=4, size=16, least=64, per_video=1),
        captions=CaptionsConfig(model=str(factory.blip(tmp_path / "blip"))),
        chat=ChatConfig(base_url=server.url, per_minute=1e6, concurrency=1),
    )
    run_output(capsys, dataclasses.replace(run, stages=("clips",)))
    output = run_output(capsys, dataclasses.replace(run, estimate=True))
    assert "2 clips; to do: instructions for 2 of them, 4 edits of 2" in output
    assert "2 requests" in output
    assert "v5e:" in output
    assert not server.requests
    output = run_output(capsys, run)
    assert "write: 4 triplets" in output
    assert len(server.requests) == 3
    triplets = read_triplets(run)
    instructions = {triplet.instruction for triplet in triplets}
    assert instructions == {edit["instruction"] for edit in EDITS}
    assert {triplet.licence for triplet in triplets} == {"CC-BY-4.0"}
    names = ("car.mp4", "skiing.mp4")
    assert all(any(name in triplet.provenance for name in names) for triplet in triplets)
    run_output(capsys, run)
    assert len(server.requests) == 3, "nothing is asked twice"
