"""The data engine, whole: on the shapes world and on real clips, killed and restarted, sharded, changed, and fed what it cannot take."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax import synthesize
from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.synthesis import dataset_writer
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.chat import ChatConfig
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig, write
from ivid2vid_jax.synthesis.config import STAGES, SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.synthesis.manifest import FAILED, lock_stage
from ivid2vid_jax.synthesis.run_stages import run_stages
from ivid2vid_jax.synthesis.sources import ShapesSource, digest, open_source
from ivid2vid_jax.utils.errors import UserError
from tests.conftest import VIDEOS
from tests.models.test_clip import VISION_TINY, save_clip
from tests.support import factory
from tests.support.chat_server import EDITS, Server, completion
from tests.support.devices import environment
from tests.synthesis.test_editors import ONE_LEVEL
from tests.video.test_video import write as write_video

ROOT = Path(__file__).parents[1]
ANY = FilterConfig(image=-1, text=-1, direction=-1, consistency=-1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random base and a random CLIP."""
    home = tmp_path_factory.mktemp("models")
    factory.save(home / "base", factory.tiny(in_channels=4, **ONE_LEVEL))
    save_clip(home / "clip", factory.TEXT_TINY, VISION_TINY, 40)
    return home


@pytest.fixture
def config(models, tmp_path):
    return SynthesisConfig(
        output=tmp_path / "made",
        count=4,
        seed=1,
        base=str(models / "base"),
        clips=ClipsConfig(frames=2, size=16, least=16),
        devices=1,
        shared_noise=SharedNoiseConfig(sampling=2),
        filter=dataclasses.replace(ANY, model=str(models / "clip")),
        validation=0.3,
    )


def told(capsys, config) -> str:
    synthesize.run(config)
    return capsys.readouterr().out


def triplets_of(config) -> list:
    """All triplets of the dataset that was made."""
    splits = [
        open_dataset(config.output / "dataset", split)
        for split in open_dataset(config.output / "dataset").splits
    ]
    return [split[i] for split in splits for i in range(len(split))]


def dataset(folder: Path) -> dict[str, bytes]:
    """File -> bytes of a dataset's records, and what its description says of them."""
    return {
        path.name: path.read_bytes()
        for path in sorted((folder / "dataset").glob("*.array_record*"))
    }


def test_the_shapes_world_from_nothing_to_triplets(config, capsys):
    said = told(capsys, config)
    for stage, count in (
        ("clips", 4),
        ("captions", 4),
        ("instructions", 4),
        ("edits", 8),
        ("scores", 8),
    ):
        assert f"{stage}: {count} accepted, 0 rejected, 0 failed, 0 to do" in said
    triplets = triplets_of(config)
    assert len(triplets) == 8 and len({each.id for each in triplets}) == 8
    for each in triplets:
        spec = shapes.Spec.from_json(each.provenance)
        np.testing.assert_array_equal(each.source, shapes.render(spec.scene, 16, 2))
        assert (each.instruction, each.edited_caption) == (
            shapes.instruction(spec.scene, spec.edit),
            shapes.caption(spec.edited),
        )
        assert each.edited.shape == each.source.shape and (each.edited != each.source).any()
        assert not shapes.held_out(spec.scene, spec.edit) and spec.edit.kind != "identity"
    page = (config.output / "index.html").read_text()
    assert (
        page.count("<section>") == 8
        and page.count("<img") == 9
        and all(f"<h3>{each.instruction}</h3>" in page for each in triplets)
    )
    found = json.loads((config.output / "statistics.json").read_text())
    assert (
        found["triplets"] == 8 == sum(found["edit_types"].values())
        and found["truth"]["edits that pass"]["count"] == 8
    )

    before = {path: path.stat().st_mtime_ns for path in (config.output / "dataset").iterdir()} | {
        path: path.stat().st_mtime_ns for path in config.output.glob("*.jsonl")
    }
    told(capsys, config)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a second run does nothing"


def test_the_true_editor_makes_true_edits_without_a_base(config, capsys):
    """What the engine's other stages do to edits that are right: nothing is lost but what the filter refuses."""
    run = dataclasses.replace(config, editor="truth", base="/nowhere", count=6)
    said = told(capsys, run)
    assert "edits: 12 accepted" in said and "chip-hours" not in told(
        capsys, dataclasses.replace(run, estimate=True)
    )
    for each in triplets_of(run):
        spec = shapes.Spec.from_json(each.provenance)
        np.testing.assert_array_equal(each.edited, shapes.render(spec.edited, 16, 2))


def test_edits_by_rules_are_judged_too(config):
    """What a rule asks for is found again by its words; what this world does not have passes none."""
    run = dataclasses.replace(config, instructions="rules", count=12)
    synthesize.run(run)
    found = json.loads((run.output / "statistics.json").read_text())["truth"]
    known = [each for each in triplets_of(run) if each.provenance.startswith("{")]
    assert (
        0
        < len(known)
        == round(found["edits of this world"]["share"] * found["edits that pass"]["count"])
        < found["edits that pass"]["count"]
    )
    for each in known:
        spec = shapes.Spec.from_json(each.provenance)
        assert (each.source_caption, each.edited_caption) == (
            shapes.caption(spec.scene),
            shapes.caption(spec.edited),
        ) and spec.scene != spec.edited
    assert not any(
        word in each.instruction for each in known for word in ("snow", "watercolor", "cartoon")
    )


def test_clips_of_the_shapes_world_come_with_several_edits(config):
    source = ShapesSource(dataclasses.replace(config, per_clip=4, count=40), config.output)
    for id in source.marks():
        _, facts = source.make(id)
        specs = [shapes.Spec.from_json(text) for text in facts["clips"][0]["specs"]]
        assert (
            len({spec.edit.kind for spec in specs}) == 4
            and len({spec.scene for spec in specs}) == 1
        )
        for spec in specs:
            assert (
                not shapes.held_out(spec.scene, spec.edit)
                and (shapes.triplet(spec).source != shapes.triplet(spec).edited).any()
            )


def test_other_thresholds_score_again_and_replace_the_dataset(config, capsys):
    told(capsys, config)
    edits, whole = (config.output / "edits.jsonl").read_bytes(), dataset(config.output)
    scores = [
        json.loads(line)["scores"]["direction"]
        for line in (config.output / "scores.jsonl").read_text().splitlines()
    ]
    limit = float(np.median(scores))
    stricter = dataclasses.replace(
        config, filter=dataclasses.replace(config.filter, direction=limit)
    )
    said = told(capsys, stricter)
    kept = sum(score >= limit for score in scores)
    assert f"scores: {kept} accepted, {8 - kept} rejected" in said and 0 < kept < 8
    assert (config.output / "edits.jsonl").read_bytes() == edits and dataset(config.output) != whole
    assert len(triplets_of(config)) == kept
    assert not list(config.output.glob(".dataset-*"))
    with pytest.raises(UserError, match="no edit has been accepted"):
        told(
            capsys,
            dataclasses.replace(config, filter=dataclasses.replace(config.filter, image=1.5)),
        )
    assert dataset(config.output), "what was there stays"


def test_shards_make_what_one_process_makes(config, capsys, tmp_path):
    told(capsys, config)
    parts = dataclasses.replace(config, output=tmp_path / "parts")
    with pytest.raises(UserError, match="run --stages clips first, of every shard"):
        told(capsys, dataclasses.replace(parts, shard="1/2"))
    for stages in (("clips",), ("captions", "instructions", "edits", "scores"), ("write",)):
        for index in (1, 0):
            said = told(capsys, dataclasses.replace(parts, shard=f"{index}/2", stages=stages))
    assert "write: 8 triplets" in said and dataset(parts.output) == dataset(config.output)
    assert all((parts.output / f"edits-{index}-of-2.jsonl").read_text() for index in (0, 1))


def test_write_waits_for_other_shards(config, capsys):
    for index in (0, 1):
        told(capsys, dataclasses.replace(config, shard=f"{index}/2", stages=("clips",)))
    mine = dataclasses.replace(
        config, shard="0/2", stages=("captions", "instructions", "edits", "scores", "write")
    )
    for index in (1, 0):
        told(
            capsys,
            dataclasses.replace(mine, shard=f"{index}/2", stages=("captions", "instructions")),
        )
    with pytest.raises(UserError, match="edits: 4 of 8 are still to be done by other shards"):
        told(capsys, mine)


def test_write_drops_nothing_of_other_shards(config, capsys, monkeypatch):
    """What they have not begun is counted, stage by stage; what they have done since this process looked is seen."""
    run = dataclasses.replace(config, editor="truth")
    for index in (0, 1):
        told(capsys, dataclasses.replace(run, shard=f"{index}/2", stages=("clips",)))
    zero, one = (
        dataclasses.replace(run, shard=f"{index}/2", stages=STAGES[1:]) for index in (0, 1)
    )
    for stage in ("captions", "instructions"):
        with pytest.raises(
            UserError, match=f"{stage}: 2 of 4 are still to be done by other shards"
        ):
            told(capsys, zero)
        told(capsys, dataclasses.replace(one, stages=(stage,)))
    engine = Engine(dataclasses.replace(zero, stages=("scores",)))
    run_stages(engine)  # has looked, and knows of no edit of the other shard
    told(capsys, dataclasses.replace(one, stages=("edits",)))
    with pytest.raises(UserError, match="scores: 4 of 8 are still"):
        dataset_writer.write_dataset(engine)
    monkeypatch.setattr("ivid2vid_jax.synthesis.engine.refusal", lambda *_: "a disc that is full")
    monkeypatch.setattr("ivid2vid_jax.synthesis.engine.REJECTED", FAILED)
    told(capsys, dataclasses.replace(one, stages=("scores",)))
    dataset_writer.write_dataset(engine)
    assert "write: 4 triplets" in capsys.readouterr().out, (
        "what fails does not keep the others waiting for ever"
    )
    monkeypatch.undo()
    told(capsys, dataclasses.replace(one, stages=("scores",)))
    dataset_writer.write_dataset(engine)
    assert "write: 8 triplets" in capsys.readouterr().out


AUTO = """
import runpy, sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from ivid2vid_jax import synthesize
synthesize.run(runpy.run_path(sys.argv[3])["config"])
"""


def test_processes_that_found_each_other_wait_for_each_other(config, capsys, tmp_path):
    """--shard auto, all stages at once: the first to have cut its clips waits for the others', and shard 0 writes what all have made."""
    run = dataclasses.replace(config, editor="truth", count=5)
    told(capsys, run)
    recipe = recipe_of(
        dataclasses.replace(run, output=tmp_path / "auto", shard="auto"), tmp_path / "recipe.py"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", AUTO, str(port)]
    started = []
    for index in ("0", "1"):
        started.append(
            subprocess.Popen(
                [*words, index, str(recipe)],
                env=environment(1),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        )
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "write: 10 triplets" in said[0][0] and "write: left to shard 0" in said[1][0]
    assert dataset(tmp_path / "auto") == dataset(run.output)


def test_one_shard_is_one_processs(config, capsys):
    with (
        lock_stage(config.output, "clips", (0, 1)),
        pytest.raises(UserError, match="another process is at work on --shard 0/1"),
    ):
        told(capsys, config)
    with lock_stage(config.output, "clips", (0, 2)):
        told(capsys, dataclasses.replace(config, shard="1/2", stages=("clips",)))
    told(capsys, dataclasses.replace(config, stages=("clips",)))


def test_a_run_killed_in_its_first_clip_can_be_gone_on_with(config, capsys, monkeypatch):
    def killed(self, id):
        write(self.folder / f"{id}.npy", np.zeros(3))
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(ShapesSource, "make", killed)
        with pytest.raises(SystemExit):
            run_stages(Engine(config))
    assert list((config.output / "clips").iterdir())
    told(capsys, dataclasses.replace(config, stages=("clips",)))


def test_captions_and_instructions_of_files_are_read_anew(config, capsys, tmp_path):
    """One clip's caption is added and another's corrected, then a clip's instruction: these clips are done again, and no other."""
    words, orders = tmp_path / "captions.jsonl", tmp_path / "orders.jsonl"
    run = dataclasses.replace(
        config,
        captions=CaptionsConfig(source=str(words)),
        instructions=str(orders),
        stages=STAGES[:3],
    )
    ids = list(Engine(run).source.marks())

    def say(captions, edits):
        words.write_text(
            "".join(
                json.dumps({"id": id, "caption": caption}) + "\n"
                for id, caption in zip(ids, captions, strict=False)
            )
        )
        orders.write_text(
            "".join(
                json.dumps({"input": caption, "edit": edit, "output": f"{caption} {edit}"}) + "\n"
                for caption, edit in edits
            )
        )
        said = told(capsys, run)
        return said, {
            stage: len((config.output / f"{stage}.jsonl").read_text().splitlines())
            for stage in STAGES[1:3]
        }

    edits = [(caption, "in the snow") for caption in "abcde"]
    said, before = say("abc", edits)
    assert "captions: 3 accepted, 1 rejected" in said and "instructions: 3 accepted" in said
    said, after = say("abed", edits)
    assert "captions: 4 accepted, 0 rejected" in said and "instructions: 4 accepted" in said
    assert after == {"captions": before["captions"] + 2, "instructions": before["instructions"] + 2}
    edits[0] = ("a", "at night")
    assert say("abed", edits)[1] == {
        "captions": after["captions"],
        "instructions": after["instructions"] + 1,
    }
    assert say("abed", edits)[1] == {
        "captions": after["captions"],
        "instructions": after["instructions"] + 1,
    }


def test_rows_that_are_refused_leave_room_for_others(config, capsys, tmp_path):
    orders = tmp_path / "orders.jsonl"
    captions = [
        shapes.caption(shapes.Spec.from_json(line["specs"][0]).scene)
        for line in Engine(clips_of(capsys, config)).kept.values()
    ]
    rows = [
        ("do nothing", "{}"),
        ("make it snow", "{} in the snow"),
        ("make it night", "{} at night"),
        ("make it rain", "{} in the rain"),
    ]
    orders.write_text(
        "".join(
            json.dumps({"input": caption, "edit": edit, "output": after.format(caption)}) + "\n"
            for caption in captions
            for edit, after in rows
        )
    )
    told(capsys, dataclasses.replace(config, instructions=str(orders), stages=STAGES[1:3]))
    for line in map(json.loads, (config.output / "instructions.jsonl").read_text().splitlines()):
        assert [each["instruction"] for each in line["proposals"]] == [
            "make it snow",
            "make it night",
        ]
        assert [each["reason"] for each in line["refused"]] == [
            "changes nothing: the edited caption is the caption",
            "more than the 2 asked for",
        ]


def clips_of(capsys, config):
    told(capsys, dataclasses.replace(config, stages=("clips",)))
    return config


def test_a_model_that_changes_under_its_name_is_asked_again(config, models, capsys, tmp_path):
    """And how many clips are worked on at once changes nothing."""
    folder = tmp_path / "clip"
    shutil.copytree(models / "clip", folder)
    blip = factory.blip(tmp_path / "blip")
    run = dataclasses.replace(
        config,
        filter=dataclasses.replace(ANY, model=str(folder)),
        captions=CaptionsConfig(model=str(blip)),
        instructions="rules",
    )
    told(capsys, run)
    before = {stage: Engine(run).marks(stage) for stage in STAGES[1:5]}
    fewer = dataclasses.replace(
        run,
        captions=CaptionsConfig(model=str(blip), batch=2),
        shared_noise=dataclasses.replace(run.shared_noise, at_once=3),
        filter=dataclasses.replace(run.filter, keep=1),
    )
    assert {stage: Engine(fewer).marks(stage) for stage in STAGES[1:5]} == before
    save_clip(tmp_path / "other", factory.TEXT_TINY, VISION_TINY, 41)
    shutil.copytree(tmp_path / "other", folder, dirs_exist_ok=True)
    (blip / "config.json").write_text((blip / "config.json").read_text() + " ")
    after = {stage: Engine(run).marks(stage) for stage in ("captions", "scores")}
    assert before["captions"].keys() == after["captions"].keys() and not set(
        before["captions"].values()
    ) & set(after["captions"].values())
    said = told(
        capsys,
        dataclasses.replace(run, captions=CaptionsConfig(source="shapes"), instructions="shapes"),
    )
    first = (config.output / "scores.jsonl").read_text().count("\n")
    save_clip(tmp_path / "third", factory.TEXT_TINY, VISION_TINY, 42)
    shutil.copytree(tmp_path / "third", folder, dirs_exist_ok=True)
    said = told(
        capsys,
        dataclasses.replace(run, captions=CaptionsConfig(source="shapes"), instructions="shapes"),
    )
    assert (
        "scores: 8 accepted" in said
        and (config.output / "scores.jsonl").read_text().count("\n") == first + 8
    )


def test_marks_do_not_need_the_bases_weights(config, capsys, monkeypatch):
    """Scores, the dataset and the estimate are made without them."""
    told(capsys, config)
    monkeypatch.setattr(
        "ivid2vid_jax.inference.pipeline.load", lambda *_, **__: pytest.fail("the base is loaded")
    )
    said = told(
        capsys,
        dataclasses.replace(
            config,
            stages=("scores", "write"),
            filter=dataclasses.replace(config.filter, image=-2.0),
        ),
    )
    assert "scores: 8 accepted" in said and "write: 8 triplets" in said
    assert "PFLOP" in told(
        capsys,
        dataclasses.replace(
            config, count=4, estimate=True, shared_noise=SharedNoiseConfig(sampling=3, inversion=2)
        ),
    )


def test_clips_that_the_base_cannot_take_are_refused_at_once(config, models):
    with pytest.raises(
        UserError,
        match="clips of 17x17 pixels: .* takes multiples of 2 alone; cut them with another --clips.size",
    ):
        run_stages(
            Engine(dataclasses.replace(config, clips=dataclasses.replace(config.clips, size=17)))
        )
    assert not (config.output / "clips").exists()


def test_a_clip_without_a_caption_costs_nothing_more(config, capsys, tmp_path):
    words = tmp_path / "captions.jsonl"
    run = dataclasses.replace(
        config,
        captions=CaptionsConfig(source=str(words)),
        instructions="rules",
        editor="shared_noise",
    )
    words.write_text("")
    told(capsys, dataclasses.replace(run, stages=("clips",)))
    assert "to do: instructions for 4 of them, 8 edits of 4" in told(
        capsys, dataclasses.replace(run, estimate=True)
    )
    words.write_text(
        json.dumps({"id": "shapes-1-000000", "caption": "a red dog on a beach"}) + "\n"
    )
    told(capsys, dataclasses.replace(run, stages=("captions",)))
    assert "to do: instructions for 1 of them, 2 edits of 1" in told(
        capsys, dataclasses.replace(run, estimate=True)
    )
    assert "4 edits of 1" in told(capsys, dataclasses.replace(run, estimate=True, samples=2))


def test_clips_that_repeat_others_are_told(config, capsys, tmp_path):
    videos = tmp_path / "videos"
    (videos / "more").mkdir(parents=True)
    film = shapes.triplet(shapes.sample_spec(3, 0, kinds=("identity",), size=64, frames=8)).source
    for name in ("a.mp4", "more/b.mp4"):
        write_video(videos / name, film, rate=8)
    words = tmp_path / "captions.jsonl"
    words.write_text(
        "".join(
            json.dumps({"id": id, "caption": "a red dog on a beach"}) + "\n"
            for id in ("a.mp4", "more/b.mp4")
        )
    )
    run = dataclasses.replace(
        config,
        videos=str(videos),
        captions=CaptionsConfig(source=str(words)),
        instructions="rules",
        clips=ClipsConfig(frames=4, size=16, least=64, per_video=1),
    )
    said = told(capsys, run)
    assert (
        "clips: 2 accepted" in said
        and "1 clips repeat others and are left out, more%2Fb.mp4-0 and a.mp4-0 among them" in said
        and "captions: 1 accepted" in said
    )
    assert json.loads((run.output / "statistics.json").read_text())["repeats"] == {
        "more%2Fb.mp4-0": "a.mp4-0"
    }
    assert "more%2Fb.mp4-0" in (run.output / "index.html").read_text()


def test_a_video_in_anothers_place_is_noticed(config, tmp_path):
    """Of the same size too; a copy with another time is the same video."""
    file = tmp_path / "a.mp4"
    data = bytearray(np.random.default_rng(0).bytes(300_000))
    file.write_bytes(data)
    before = digest(file)
    os.utime(file, (0, 0))
    assert digest(file) == before
    for place in (0, 70_000 - 2**16, len(data) - 1):
        data[place] ^= 1
        file.write_bytes(data)
        assert digest(file) != before
        data[place] ^= 1
    file.write_bytes(data[:-1])
    assert digest(file) != before
    made = dataclasses.replace(
        config, videos=str(tmp_path), captions=CaptionsConfig(), instructions="rules"
    )
    one = open_source(made).marks()
    file.write_bytes(data[:-2] + b"x")
    assert one.keys() == open_source(made).marks().keys() and one != open_source(made).marks()


def test_the_best_of_several_samples_are_kept(config, capsys):
    told(capsys, config)
    single = Engine(config).jobs
    more = dataclasses.replace(config, samples=3, filter=dataclasses.replace(config.filter, keep=1))
    said = told(capsys, more)
    jobs = Engine(more).jobs
    assert {id: jobs[id] for id in single} == single and len(jobs) == 24, (
        "the first sample is the only one's"
    )
    assert (
        "edits: 24 accepted" in said
        and "write: 8 triplets" in said
        and "16 left out beside better ones" in said
    )
    assert len((config.output / "edits.jsonl").read_text().splitlines()) == 24, (
        "what was made is not made again"
    )
    lines = [json.loads(line) for line in (config.output / "scores.jsonl").read_text().splitlines()]
    kept = {each.id for each in triplets_of(more)}
    assert len(kept) == 8 and not kept <= set(single)
    for id in single:
        three = {
            line["id"]: line["scores"]["direction"] for line in lines if line["id"].startswith(id)
        }
        assert sorted(three) == [id, f"{id}-1", f"{id}-2"] and max(three, key=three.get) in kept
        edits = [np.load(config.output / "edits" / f"{each}.npy").astype(int) for each in three]
        assert (
            len({jobs[each].seed for each in three}) == 3
            and min(np.abs(edits[i] - edits[i - 1]).max() for i in range(3)) > 1
        )


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_dataset_is_the_same(config, capsys, kills, tmp_path):
    """Up to twice a round: a new run, at moments that fill the whole time evenly, and the one that goes on with it, anywhere. Then it is let end, and compared."""
    config = dataclasses.replace(
        config, count=6, shared_noise=SharedNoiseConfig(sampling=20)
    )  # longer edits, to be killed in
    told(capsys, config)
    killed = dataclasses.replace(config, output=tmp_path / "killed")
    words = [
        sys.executable,
        "-m",
        "ivid2vid_jax.synthesize",
        "--config",
        str(recipe_of(killed, tmp_path / "recipe.py")),
    ]
    for _ in range(2):  # the second knows its compiled programs, as all that are killed do
        shutil.rmtree(killed.output, ignore_errors=True)
        began, process = (
            time.monotonic(),
            subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT),
        )
        while not killed.output.exists() and process.poll() is None:
            time.sleep(0.01)
        first = time.monotonic() - began
        assert process.wait() == 0
        takes = time.monotonic() - began
    rng, died, begun, rounds = random.Random(0), 0, Counter(), 0
    while died < kills:
        assert rounds < kills, "runs end before they are killed"
        shutil.rmtree(killed.output, ignore_errors=True)
        for share in ((0.3 + 0.618 * rounds) % 1, rng.random()):
            process = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
            )
            time.sleep(first + share * (takes - first))
            process.send_signal(signal.SIGKILL)
            if process.wait() != 0:
                died += 1
                begun[
                    max(
                        (path.stem for path in killed.output.glob("*.jsonl")),
                        key=STAGES.index,
                        default="nothing",
                    )
                ] += 1
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        assert dataset(killed.output) == dataset(config.output), f"round {rounds}"
        assert found(killed.output) == found(config.output), f"round {rounds}"
        rounds += 1
    print(
        f"{died} runs killed, by the last stage with an item settled {dict(begun)}; {rounds} datasets alike"
    )


def found(folder: Path) -> dict[str, list]:
    """What the stages' manifests say of the items, but for when and how fast; each item once."""
    out = {}
    for stage in STAGES[:-1]:
        lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
        assert len({line["id"] for line in lines}) == len(lines), (
            f"{stage}: something was done twice"
        )
        out[stage] = sorted(
            (
                {key: value for key, value in line.items() if key not in ("time", "seconds")}
                for line in lines
            ),
            key=lambda line: line["id"],
        )
    return out


def recipe_of(config, file: Path) -> Path:
    text = repr(config).replace(repr(config.output), f"Path({str(config.output)!r})")
    names = sorted(set(re.findall(r"\b([A-Z]\w+Config)\b", text)))
    file.write_text(
        f"from pathlib import Path\nfrom ivid2vid_jax.synthesis.config import {', '.join(names)}\nconfig = {text}\n"
    )
    return file


def test_real_clips_through_every_stage(config, capsys, car, skiing, tmp_path):
    """BLIP with random weights, a chat model on loopback, Tune-A-Video on a random base: the plumbing, whole."""
    server = Server(completion(json.dumps(EDITS)), 500, completion(json.dumps(EDITS)))
    run = dataclasses.replace(
        config,
        videos=str(VIDEOS),
        instructions="chat",
        editor="tune_a_video",
        tune_a_video=TuneAVideoConfig(steps=2, inversion=2, sampling=2),
        licence="CC-BY-4.0",
        clips=ClipsConfig(frames=4, size=16, least=64, per_video=1),
        captions=CaptionsConfig(model=str(factory.blip(tmp_path / "blip"))),
        chat=ChatConfig(
            base_url=f"http://127.0.0.1:{server.http.server_port}/v1", per_minute=1e6, concurrency=1
        ),
    )
    told(capsys, dataclasses.replace(run, stages=("clips",)))
    said = told(capsys, dataclasses.replace(run, estimate=True))
    assert (
        "2 clips; to do: instructions for 2 of them, 4 edits of 2" in said
        and "2 requests" in said
        and "v5e:" in said
        and not server.asked
    )
    said = told(capsys, run)
    assert "write: 4 triplets" in said and len(server.asked) == 3
    triplets = triplets_of(run)
    assert {each.instruction for each in triplets} == {each["instruction"] for each in EDITS} and {
        each.licence for each in triplets
    } == {"CC-BY-4.0"}
    assert all(
        "car-turn.mp4" in each.provenance or "man-skiing.mp4" in each.provenance
        for each in triplets
    )
    told(capsys, run)
    assert len(server.asked) == 3, "nothing is asked twice"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(stages=("cut",)), "--stages cut: choose from clips"),
        (dict(shard="2/2"), "--shard 2/2 must be I/N"),
        (dict(count=0), "--count 0 must be between"),
        (
            dict(videos="/nowhere", captions=CaptionsConfig(), instructions="rules"),
            "/nowhere: no such folder",
        ),
        (dict(videos="/tmp"), "only --videos shapes comes with its own"),
        (dict(per_clip="2"), "per_clip '2' must be int"),
        (dict(instructions="chat"), "OPENAI_API_KEY"),
        (dict(instructions="/none.jsonl"), "/none.jsonl: no such file"),
        (dict(chat=ChatConfig(retries=-1)), "--chat.retries -1 must be between 0 and 1000"),
        (dict(chat=ChatConfig(per_minute=0)), "--chat.per-minute 0 must"),
        (dict(chat=ChatConfig(concurrency=0)), "--chat.concurrency 0 must"),
        (dict(captions=CaptionsConfig(batch=0)), "--captions.batch 0 must"),
        (dict(clips=ClipsConfig(fps=0)), "--clips.fps 0 must"),
        (dict(clips=ClipsConfig(per_video=0)), "--clips.per-video 0 must"),
        (dict(clips=ClipsConfig(size=4)), "--clips.size 4 must be between 8"),
        (dict(filter=FilterConfig(keep=0)), "--filter.keep 0 must"),
        (
            dict(shared_noise=SharedNoiseConfig(text_scale=float("nan"))),
            "--shared-noise.text-scale nan must",
        ),
        (dict(samples=0), "--samples 0 must"),
        (dict(samples=2, editor="truth"), "--samples 2: edits from a clip's own noise"),
        (dict(samples=2, editor="tune_a_video"), "--samples 2: edits from"),
        (
            dict(samples=2, shared_noise=SharedNoiseConfig(inversion=9)),
            "only --editor shared_noise with --shared-noise.inversion 0 draws others",
        ),
    ],
)
def test_what_cannot_be_is_named(config, change, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        run_stages(Engine(dataclasses.replace(config, **change)))


def test_a_folder_of_other_things_is_left_alone(config):
    config.output.mkdir()
    (config.output / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other things"):
        Engine(config)
