"""Fixtures of the data tests."""

import pytest

from ivid2vid_jax.data import loader, shapes
from ivid2vid_jax.data.shapes.scene import CROWDED_KINDS

# The kinds that one frame and the sentence decide. The others: test_shapes_free.py.
FRAME_KINDS = (*CROWDED_KINDS, shapes.UNSEEN_STYLE)


@pytest.fixture
def sources(monkeypatch):
    """A dict of fake sources by name, which loaders open; other names open what they always do."""
    fakes, open_source = {}, loader.open_source
    monkeypatch.setattr(
        loader,
        "open_source",
        lambda name, *rest: fakes[name] if name in fakes else open_source(name, *rest),
    )
    return fakes


@pytest.fixture(scope="session")
def world():
    """1000 (triplet, spec) pairs: all FRAME_KINDS, both splits, both worlds."""
    worlds = list(shapes.WORLDS)
    specs = [
        shapes.sample_spec(3, i, shapes.SPLITS[i % 2], FRAME_KINDS, world=worlds[i // 2 % 2])
        for i in range(1000)
    ]
    return [(shapes.triplet(spec), spec) for spec in specs]
