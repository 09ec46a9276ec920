"""The data engine, whole: on the shapes world and on real clips, killed and restarted, sharded, changed, and fed what it cannot take."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax import synthesize
from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.chat import ChatConfig
from ivid2vid_jax.synthesis.clips import ClipsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.synthesis.sources import Shapes
from tests import factory
from tests.chat_server import EDITS, Server, completion
from tests.conftest import VIDEOS
from tests.test_clip import VISION_TINY, save_clip
from tests.test_editors import ONE_LEVEL

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
        output=tmp_path / "made", count=4, seed=1, base=str(models / "base"), clips=ClipsConfig(frames=2, size=16, least=16), devices=1,
        shared_noise=SharedNoiseConfig(sampling=2), filter=dataclasses.replace(ANY, model=str(models / "clip")), validation=0.3,
    )  # fmt: skip


def told(capsys, config) -> str:
    synthesize.run(config)
    return capsys.readouterr().out


def triplets_of(config) -> list:
    """All triplets of the dataset that was made."""
    splits = [open_dataset(config.output / "dataset", split) for split in open_dataset(config.output / "dataset").splits]
    return [split[i] for split in splits for i in range(len(split))]


def dataset(folder: Path) -> dict[str, bytes]:
    """File -> bytes of a dataset's records, and what its description says of them."""
    return {path.name: path.read_bytes() for path in sorted((folder / "dataset").glob("*.array_record*"))}


def test_the_shapes_world_from_nothing_to_triplets(config, capsys):
    said = told(capsys, config)
    for stage, count in (("clips", 4), ("captions", 4), ("instructions", 4), ("edits", 8), ("scores", 8)):
        assert f"{stage}: {count} accepted, 0 rejected, 0 failed, 0 to do" in said
    triplets = triplets_of(config)
    assert len(triplets) == 8 and len({each.id for each in triplets}) == 8
    for each in triplets:
        spec = shapes.Spec.from_json(each.provenance)
        np.testing.assert_array_equal(each.source, shapes.render(spec.scene, 16, 2))
        assert (each.instruction, each.edited_caption) == (shapes.instruction(spec.scene, spec.edit), shapes.caption(spec.edited))
        assert each.edited.shape == each.source.shape and (each.edited != each.source).any()
        assert not shapes.held_out(spec.scene, spec.edit) and spec.edit.kind != "identity"
    page = (config.output / "index.html").read_text()
    assert page.count("<section>") == 8 and page.count("<img") == 9 and all(f"<h3>{each.instruction}</h3>" in page for each in triplets)
    found = json.loads((config.output / "statistics.json").read_text())
    assert found["triplets"] == 8 == sum(found["edit_types"].values()) and found["truth"]["edits that pass"]["count"] == 8

    before = {path: path.stat().st_mtime_ns for path in (config.output / "dataset").iterdir()} | {path: path.stat().st_mtime_ns for path in config.output.glob("*.jsonl")}
    told(capsys, config)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a second run does nothing"


def test_the_true_editor_makes_true_edits_without_a_base(config, capsys):
    """What the engine's other stages do to edits that are right: nothing is lost but what the filter refuses."""
    run = dataclasses.replace(config, editor="truth", base="/nowhere", count=6)
    said = told(capsys, run)
    assert "edits: 12 accepted" in said and "chip-hours" not in told(capsys, dataclasses.replace(run, estimate=True))
    for each in triplets_of(run):
        spec = shapes.Spec.from_json(each.provenance)
        np.testing.assert_array_equal(each.edited, shapes.render(spec.edited, 16, 2))


def test_edits_by_rules_are_judged_too(config):
    """What a rule asks for is found again by its words; what this world does not have passes none."""
    run = dataclasses.replace(config, instructions="rules", count=12)
    synthesize.run(run)
    found = json.loads((run.output / "statistics.json").read_text())["truth"]
    known = [each for each in triplets_of(run) if each.provenance.startswith("{")]
    assert 0 < len(known) == round(found["edits of this world"]["share"] * found["edits that pass"]["count"]) < found["edits that pass"]["count"]
    for each in known:
        spec = shapes.Spec.from_json(each.provenance)
        assert (each.source_caption, each.edited_caption) == (shapes.caption(spec.scene), shapes.caption(spec.edited)) and spec.scene != spec.edited
    assert not any(word in each.instruction for each in known for word in ("snow", "watercolor", "cartoon"))


def test_clips_of_the_shapes_world_come_with_several_edits(config):
    source = Shapes(dataclasses.replace(config, per_clip=4, count=40), config.output)
    for id in source.marks():
        _, facts = source.make(id)
        specs = [shapes.Spec.from_json(text) for text in facts["clips"][0]["specs"]]
        assert len({spec.edit.kind for spec in specs}) == 4 and len({spec.scene for spec in specs}) == 1
        for spec in specs:
            assert not shapes.held_out(spec.scene, spec.edit) and (shapes.triplet(spec).source != shapes.triplet(spec).edited).any()


def test_other_thresholds_score_again_and_replace_the_dataset(config, capsys):
    told(capsys, config)
    edits, whole = (config.output / "edits.jsonl").read_bytes(), dataset(config.output)
    scores = [json.loads(line)["scores"]["direction"] for line in (config.output / "scores.jsonl").read_text().splitlines()]
    limit = float(np.median(scores))
    stricter = dataclasses.replace(config, filter=dataclasses.replace(config.filter, direction=limit))
    said = told(capsys, stricter)
    kept = sum(score >= limit for score in scores)
    assert f"scores: {kept} accepted, {8 - kept} rejected" in said and 0 < kept < 8
    assert (config.output / "edits.jsonl").read_bytes() == edits and dataset(config.output) != whole
    assert len(triplets_of(config)) == kept
    assert not list(config.output.glob(".dataset-*"))
    with pytest.raises(UserError, match="no edit has been accepted"):
        told(capsys, dataclasses.replace(config, filter=dataclasses.replace(config.filter, image=1.5)))
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
    mine = dataclasses.replace(config, shard="0/2", stages=("captions", "instructions", "edits", "scores", "write"))
    for index in (1, 0):
        told(capsys, dataclasses.replace(mine, shard=f"{index}/2", stages=("captions", "instructions")))
    with pytest.raises(UserError, match="still to be made or scored by other shards"):
        told(capsys, mine)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_dataset_is_the_same(config, capsys, kills, tmp_path):
    told(capsys, config)
    killed = dataclasses.replace(config, output=tmp_path / "killed")
    recipe = tmp_path / "recipe.py"
    text = repr(killed).replace(repr(killed.output), f"Path({str(killed.output)!r})")
    names = sorted(set(re.findall(r"\b([A-Z]\w+Config)\b", text)))
    recipe.write_text(
        "from pathlib import Path\nfrom ivid2vid_jax.synthesis.config import *\nfrom ivid2vid_jax.synthesis.config import " + ", ".join(names) + f"\nconfig = {text}\n"
    )
    words = [sys.executable, "-m", "ivid2vid_jax.synthesize", "--config", str(recipe)]
    for _ in range(2):  # the second knows its compiled programs, as all that are killed do
        shutil.rmtree(killed.output, ignore_errors=True)
        began = time.monotonic()
        subprocess.run(words, check=True, capture_output=True, cwd=Path(__file__).parents[1])
        takes = time.monotonic() - began
    rng, died, ended = random.Random(0), 0, True
    for number in range(kills):
        if ended or number % 4 == 0:
            shutil.rmtree(killed.output, ignore_errors=True)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        time.sleep(rng.uniform(0.3, 0.9) * takes)
        process.send_signal(signal.SIGKILL)
        ended = process.wait() == 0
        died += not ended
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert died >= kills / 2 and dataset(killed.output) == dataset(config.output)
    for stage in ("clips", "captions", "instructions", "edits", "scores"):
        ids = [json.loads(line)["id"] for line in (killed.output / f"{stage}.jsonl").read_text().splitlines()]
        assert len(ids) == len(set(ids)), f"{stage}: something was done twice"


def test_real_clips_through_every_stage(config, capsys, car, skiing, tmp_path):
    """BLIP with random weights, a chat model on loopback, Tune-A-Video on a random base: the plumbing, whole."""
    server = Server(completion(json.dumps(EDITS)), 500, completion(json.dumps(EDITS)))
    run = dataclasses.replace(
        config, videos=str(VIDEOS), instructions="chat", editor="tune_a_video", tune_a_video=TuneAVideoConfig(steps=2, inversion=2, sampling=2), licence="CC-BY-4.0",
        clips=ClipsConfig(frames=4, size=16, least=64, per_video=1), captions=CaptionsConfig(model=str(factory.blip(tmp_path / "blip"))),
        chat=ChatConfig(base_url=f"http://127.0.0.1:{server.http.server_port}/v1", per_minute=1e6, concurrency=1),
    )  # fmt: skip
    told(capsys, dataclasses.replace(run, stages=("clips",)))
    said = told(capsys, dataclasses.replace(run, estimate=True))
    assert "2 clips; to do: instructions for 2 of them, 4 edits of 2" in said and "2 requests" in said and "v5e:" in said and not server.asked
    said = told(capsys, run)
    assert "write: 4 triplets" in said and len(server.asked) == 3
    triplets = triplets_of(run)
    assert {each.instruction for each in triplets} == {each["instruction"] for each in EDITS} and {each.licence for each in triplets} == {"CC-BY-4.0"}
    assert all("car-turn.mp4" in each.provenance or "man-skiing.mp4" in each.provenance for each in triplets)
    told(capsys, run)
    assert len(server.asked) == 3, "nothing is asked twice"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(stages=("cut",)), "--stages cut: choose from clips"), (dict(shard="2/2"), "--shard 2/2 must be I/N"), (dict(count=0), "--count 0 must be between"),
        (dict(videos="/nowhere", captions=CaptionsConfig(), instructions="rules"), "/nowhere: no such folder"),
        (dict(videos="/tmp"), "only --videos shapes comes with its own"), (dict(per_clip="2"), "per_clip '2' must be int"),
        (dict(instructions="chat"), "OPENAI_API_KEY"), (dict(instructions="/none.jsonl"), "/none.jsonl: no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(config, change, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        Engine(dataclasses.replace(config, **change)).run()


def test_a_folder_of_other_things_is_left_alone(config):
    config.output.mkdir()
    (config.output / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other things"):
        Engine(config)
