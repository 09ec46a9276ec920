"""The command `synthesize`: values that it refuses. Whole runs: tests/synthesis/test_engine.py."""

import dataclasses

import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.chat import ChatConfig
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.synthesis.run_stages import run_stages


@pytest.fixture
def config(tmp_path):
    clips = ClipsConfig(frames=2, size=16, least=16)
    return SynthesisConfig(output=tmp_path / "made", count=4, seed=1, clips=clips, devices=1)


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
        (dict(samples=2, editor="truth"), "--samples 2: true edits and edits from a clip's own"),
        (dict(samples=2, editor="tune_a_video"), "--samples 2: true edits and edits from"),
        (
            dict(samples=2, shared_noise=SharedNoiseConfig(inversion=9)),
            "only --editor shared_noise with --shared-noise.inversion 0 draws different ones",
        ),
    ],
)
def test_bad_values_are_named(config, change, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        run_stages(Engine(dataclasses.replace(config, **change)))


def test_a_folder_with_other_files_is_left_alone(config):
    config.output.mkdir()
    (config.output / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other things"):
        Engine(config)
