"""Captions: a random BLIP of the real architecture through the same code, files, and what is missing."""

import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis import captions
from ivid2vid_jax.synthesis.captions import Blip, CaptionsConfig
from tests import factory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factory.blip(tmp_path_factory.mktemp("blip"))


def test_frames_are_captioned_alike_whatever_the_batch(folder):
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8))
    found = [Blip(CaptionsConfig(model=str(folder), batch=batch))(frames) for batch in (2, 5)]
    assert found[0] == found[1] and len(found[0]) == 5
    assert all(isinstance(text, str) and text and not text.startswith("a video of") for text in found[0]), found


def test_a_missing_model_is_told_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UserError, match="hf download Salesforce/none"):
        Blip(CaptionsConfig(model="Salesforce/none"))
    with pytest.raises(UserError, match="put a whole BLIP folder there"):
        Blip(CaptionsConfig(model=str(tmp_path)))


def test_files_of_captions(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text('{"id": "a.mp4", "caption": " a  red dog "}\n{"id": "b-1", "caption": "x"}\n')
    known = captions.from_file(file)
    assert captions.of_clip(known, "a-0", "a.mp4") == "a red dog" and captions.of_clip(known, "b-1", "b.mp4") == "x"
    assert captions.of_clip(known, "c-0", "c.mp4") is None
    file.write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match='line 1: needs {"id"'):
        captions.from_file(file)
    with pytest.raises(UserError, match="no such file, nor is it blip"):
        captions.from_file(tmp_path / "none")


def test_the_prompt_is_not_part_of_the_caption():
    assert captions.without("a video of  a dog", "a video of") == "a dog" and captions.without("a dog", "a video of") == "a dog"
