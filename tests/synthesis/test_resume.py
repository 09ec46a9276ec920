"""Runs that are killed or changed: only items whose inputs or settings differ are repeated."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.config import STAGES, SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.synthesis.fingerprints import fingerprint, hashed_settings
from ivid2vid_jax.synthesis.run_stages import run_stages
from ivid2vid_jax.synthesis.sources import DIGEST_BYTES, ShapesSource, digest, open_clip_source
from ivid2vid_jax.synthesis.workspace import write_array
from tests.models.test_clip import VISION_TINY, save_clip
from tests.support import factory
from tests.support.command import start_command, wait_for
from tests.synthesis.runs import (
    KEEP_ALL,
    dataset_bytes,
    manifest_lines,
    read_results,
    read_triplets,
    run_output,
    write_json_lines,
    write_recipe,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ClipsConfig(), "7a63332a4395e36e"),
        (CaptionsConfig(), "96e3401c132f3822"),
        (SharedNoiseConfig(), "0382f09fc73366cf"),
        (TuneAVideoConfig(), "07d115c1fe5c786a"),
        (FilterConfig(), "63d1f4144b02487a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_settings_have_the_fingerprints_of_version_0_1(config, expected):
    """Otherwise every existing folder would be done again; the values were printed by 0.1."""
    assert fingerprint(hashed_settings(config)) == expected


def test_items_have_the_fingerprints_of_version_0_1(tmp_path, capsys):
    """Of all stages, on a run of one clip; the values were printed by 0.1."""
    run = SynthesisConfig(
        output=tmp_path / "made",
        count=1,
        seed=5,
        editor="truth",
        clips=ClipsConfig(frames=2, size=16, least=16),
        filter=FilterConfig(model="some/clip"),
        stages=STAGES[:4],
    )
    run_output(capsys, run)
    engine = Engine(run)
    clip = "shapes-5-000000"
    assert {name: dict(engine.stage(name).fingerprints) for name in STAGES[:5]} == {
        "clips": {clip: "a511ad124da69d6a"},
        "captions": {clip: "994ea371dec6fc72"},
        "instructions": {clip: "b3ff8ead9ccfd8b4"},
        "edits": {f"{clip}.7ed4b81b": "b351160b5f6cf60e", f"{clip}.1232c6d4": "8fd4bf5b1947b3fc"},
        "scores": {f"{clip}.1232c6d4": "62c5d9d7ad039fed", f"{clip}.7ed4b81b": "465964aadf618fc6"},
    }


@pytest.mark.slow
def test_other_thresholds_score_again_and_replace_the_dataset(config, capsys):
    run_output(capsys, config)
    edits = (config.output / "edits.jsonl").read_bytes()
    dataset = dataset_bytes(config.output)
    scores = [line["scores"]["direction"] for line in manifest_lines(config.output, "scores")]
    limit = float(np.median(scores))
    kept = sum(score >= limit for score in scores)
    assert 0 < kept < 8

    stricter = dataclasses.replace(config.filter, direction=limit)
    output = run_output(capsys, dataclasses.replace(config, filter=stricter))
    assert f"scores: {kept} accepted, {8 - kept} rejected" in output
    assert (config.output / "edits.jsonl").read_bytes() == edits
    assert dataset_bytes(config.output) != dataset
    assert len(read_triplets(config)) == kept
    assert not list(config.output.glob(".dataset-*"))

    too_strict = dataclasses.replace(config.filter, image=1.5)
    with pytest.raises(UserError, match="no edit has been accepted"):
        run_output(capsys, dataclasses.replace(config, filter=too_strict))
    assert len(read_triplets(config)) == kept, "the dataset stays"


def test_a_run_killed_in_its_first_clip_continues(config, capsys, monkeypatch):
    def write_and_exit(self, id):
        write_array(self.folder / f"{id}.npy", np.zeros(3))
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(ShapesSource, "make", write_and_exit)
        with pytest.raises(SystemExit):
            run_stages(Engine(config))
    assert list((config.output / "clips").iterdir())
    run_output(capsys, dataclasses.replace(config, stages=("clips",)))


def test_files_of_captions_and_instructions_are_read_again(config, capsys, tmp_path):
    """A caption is added, another one corrected, then an instruction: only those are repeated."""
    captions_file, edits_file = tmp_path / "captions.jsonl", tmp_path / "edits.jsonl"
    run = dataclasses.replace(
        config,
        captions=CaptionsConfig(source=str(captions_file)),
        instructions=str(edits_file),
        stages=STAGES[:3],
    )
    ids = list(Engine(run).clips.fingerprints)

    def run_with(captions, edits):
        """The output, and the numbers of lines of the manifests."""
        rows = zip(ids, captions, strict=False)
        write_json_lines(captions_file, ({"id": id, "caption": text} for id, text in rows))
        write_json_lines(
            edits_file,
            (
                {"input": caption, "edit": edit, "output": f"{caption} {edit}"}
                for caption, edit in edits.items()
            ),
        )
        output = run_output(capsys, run)
        return output, [len(manifest_lines(run.output, stage)) for stage in STAGES[1:3]]

    edits = dict.fromkeys("abcde", "in the snow")
    output, (captions, instructions) = run_with("abc", edits)
    assert "captions: 3 accepted, 1 rejected" in output
    assert "instructions: 3 accepted" in output
    output, counts = run_with("abed", edits)
    assert "captions: 4 accepted, 0 rejected" in output
    assert "instructions: 4 accepted" in output
    assert counts == [captions + 2, instructions + 2]
    edits["a"] = "at night"
    for _ in range(2):
        assert run_with("abed", edits)[1] == [captions + 2, instructions + 3]


def test_batch_sizes_are_in_no_fingerprint(config, capsys, tmp_path):
    captions = CaptionsConfig(model=str(factory.blip(tmp_path / "blip")))
    run = dataclasses.replace(config, captions=captions, instructions="rules")
    run_output(capsys, run)
    other = dataclasses.replace(
        run,
        captions=dataclasses.replace(captions, batch=2),
        shared_noise=dataclasses.replace(run.shared_noise, at_once=3),
        filter=dataclasses.replace(run.filter, keep=1),
    )
    for name in STAGES[1:5]:
        fingerprints = Engine(run).stage(name).fingerprints
        assert fingerprints
        assert Engine(other).stage(name).fingerprints == fingerprints


def test_other_weights_under_the_same_name_are_noticed(config, models, capsys, tmp_path):
    clip = shutil.copytree(models / "clip", tmp_path / "clip")
    filter = dataclasses.replace(KEEP_ALL, model=str(clip))
    blip = factory.blip(tmp_path / "blip")
    run = dataclasses.replace(config, filter=filter, editor="truth")
    with_blip = dataclasses.replace(run, captions=CaptionsConfig(model=str(blip)))
    run_output(capsys, run)
    before = Engine(with_blip).captions.fingerprints
    (blip / "config.json").write_text((blip / "config.json").read_text() + " ")
    after = Engine(with_blip).captions.fingerprints
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())

    assert len(manifest_lines(run.output, "scores")) == 8
    save_clip(tmp_path / "other", factory.TEXT_TINY, VISION_TINY, 41)
    shutil.copytree(tmp_path / "other", clip, dirs_exist_ok=True)
    assert "scores: 8 accepted" in run_output(capsys, run)
    assert len(manifest_lines(run.output, "scores")) == 16


def test_another_video_under_the_same_name_is_noticed(config, tmp_path):
    """Also one of the same size; the time of a file does not matter."""
    file = tmp_path / "a.mp4"
    data = bytearray(np.random.default_rng(0).bytes(300_000))
    file.write_bytes(data)
    before = digest(file)
    os.utime(file, (0, 0))
    assert digest(file) == before
    for position in (0, 70_000 - DIGEST_BYTES, len(data) - 1):
        data[position] ^= 1
        file.write_bytes(data)
        assert digest(file) != before
        data[position] ^= 1
    file.write_bytes(data[:-1])
    assert digest(file) != before
    run = dataclasses.replace(
        config, videos=str(tmp_path), captions=CaptionsConfig(), instructions="rules"
    )
    before = open_clip_source(run).fingerprints()
    file.write_bytes(data[:-2] + b"x")
    after = open_clip_source(run).fingerprints()
    assert before.keys() == after.keys()
    assert before != after


def test_a_run_killed_between_edits_ends_with_the_same_results(config, capsys, tmp_path):
    config = dataclasses.replace(config, count=6)
    run_output(capsys, config)
    killed = dataclasses.replace(config, output=tmp_path / "killed")
    recipe = write_recipe(killed, tmp_path / "recipe.py")
    process = start_command("synthesize", "--config", recipe)
    edits = killed.output / "edits.jsonl"
    wait_for(process, lambda: edits.is_file() and edits.read_text().count("\n") > 1)
    process.kill()
    process.wait()
    assert len(manifest_lines(killed.output, "edits")) < 12
    run_output(capsys, killed)
    assert dataset_bytes(killed.output) == dataset_bytes(config.output)
    assert read_results(killed.output) == read_results(config.output)


@pytest.mark.slow
def test_killed_at_any_moment_the_results_are_the_same(config, capsys, tmp_path, kills=20):
    """Each round kills up to two processes, then lets one end and compares.

    The first one starts a new run, and its kills fill the time of a run evenly; the second one
    continues it and is killed at a random moment.
    """
    # long edits, so that kills hit them
    config = dataclasses.replace(config, count=6, shared_noise=SharedNoiseConfig(sampling=20))
    run_output(capsys, config)
    killed = dataclasses.replace(config, output=tmp_path / "killed")
    recipe = write_recipe(killed, tmp_path / "recipe.py")
    command = [sys.executable, "-m", "ivid2vid_jax.synthesize", "--config", str(recipe)]
    start, end = time_run(command, killed.output)
    rng, num_killed, rounds, stages = random.Random(0), 0, 0, Counter()
    while num_killed < kills:
        assert rounds < kills, "runs end before they are killed"
        shutil.rmtree(killed.output, ignore_errors=True)
        for share in ((0.3 + 0.618 * rounds) % 1, rng.random()):
            if run_and_kill(command, after=start + share * (end - start)):
                num_killed += 1
                begun = (path.stem for path in killed.output.glob("*.jsonl"))
                stages[max(begun, key=STAGES.index, default="nothing")] += 1
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert process.returncode == 0, process.stderr[-2000:]
        assert dataset_bytes(killed.output) == dataset_bytes(config.output), f"round {rounds}"
        assert read_results(killed.output) == read_results(config.output), f"round {rounds}"
        rounds += 1
    print(f"{num_killed} runs killed, by their last stage {dict(stages)}; {rounds} equal datasets")


def time_run(command, output):
    """Seconds until a run makes its output folder, and until it ends, with compiled programs."""
    for _ in range(2):  # the first run fills the compilation cache
        shutil.rmtree(output, ignore_errors=True)
        begin = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        while not output.exists() and process.poll() is None:
            time.sleep(0.01)
        start = time.monotonic() - begin
        assert process.wait() == 0
        end = time.monotonic() - begin
    return start, end


def run_and_kill(command, after):
    """Starts a run and kills it after some seconds; whether it was still running."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return process.wait() != 0
