"""Fixtures of the tests of `evaluate` on clips."""

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.evaluation import inception
from tests.evaluation.edited_set import EDITS, SOURCE, Features, save
from tests.evaluation.test_clip_sets import write_list
from tests.models.test_clip import VISION_TINY, save_clip
from tests.support import factory


@pytest.fixture
def world(tmp_path):
    """(data, edited, output): three clips and their edits; the third has a mask and captions."""
    data, edited = tmp_path / "data", tmp_path / "edited"
    for i, edit in enumerate(EDITS):
        save(data / f"clip{i}", SOURCE)
        save(edited / f"clip{i}", edit)
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(data / "mask.png")
    rows = [
        ["clip0", "keep <it>", "", "", ""],
        ["clip1", "freeze it", "", "", ""],
        ["clip2", "brighter", "mask.png", "a", "b"],
    ]
    write_list(data, rows, ("video", "instruction", "mask", "source_caption", "edited_caption"))
    return data, edited, tmp_path / "out"


@pytest.fixture
def words(world):
    """The options that evaluate the edits without clips on the page."""
    data, edited, output = world
    return ("--edited", edited, "--data", data, "--output", output, "--shown", 0)


@pytest.fixture
def fake_inception(monkeypatch):
    Features.calls = 0
    monkeypatch.setattr(inception, "Inception", lambda file: Features())


@pytest.fixture
def tiny_clip(tmp_path):
    save_clip(tmp_path / "clip", factory.TEXT_TINY, VISION_TINY, 40)
    return tmp_path / "clip"
