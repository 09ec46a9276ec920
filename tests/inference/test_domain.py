"""Warnings for clips and words that the embedded models do not know."""

import pytest

import ivid2vid_jax
from ivid2vid_jax import assets
from ivid2vid_jax.data.shapes import sample_spec, triplet
from ivid2vid_jax.inference.domain import domain_warnings, unknown_words
from ivid2vid_jax.video.read import open_clip


@pytest.fixture(scope="module")
def pipe():
    return ivid2vid_jax.load()


def frames_of(path):
    return (frame.pixels for frame in open_clip(path).frames())


def test_a_real_clip_and_an_unknown_word_are_named(pipe, skiing):
    (warning,) = domain_warnings(pipe, frames_of(skiing), "make it snow")
    assert warning.startswith("unknown words: snow; the clip is none of simple shapes")
    assert "--model timbrooks/instruct-pix2pix" in warning


def test_clips_of_the_shapes_world_are_known(pipe):
    for path in assets.clips().values():
        assert domain_warnings(pipe, frames_of(path), "make the star purple") == []
    for index in range(5):
        example = triplet(sample_spec(1, index, "eval", frames=1, world="shapes-crowded"))
        assert domain_warnings(pipe, example.source, example.instruction) == []


def test_other_models_have_no_warnings(tiny, skiing):
    frames = frames_of(skiing)
    assert domain_warnings(ivid2vid_jax.load(tiny), frames, "make it snow") == []
    assert len(list(frames)) == 91  # none was decoded


def test_unknown_words():
    assert unknown_words("Make it look like van Gogh!") == ["look", "like", "van", "gogh"]
    assert unknown_words("put it on a pink background") == []
