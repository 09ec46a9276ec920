"""Random models and a small config for runs of the data engine."""

import dataclasses

import pytest

from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.editors import SharedNoiseConfig
from tests.models.test_clip import VISION_TINY, save_clip
from tests.support import factory
from tests.synthesis.runs import KEEP_ALL


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with a random base and a random CLIP."""
    folder = tmp_path_factory.mktemp("models")
    factory.save_pipeline(folder / "base", factory.tiny_parts(in_channels=4, **factory.ONE_LEVEL))
    save_clip(folder / "clip", factory.TEXT_TINY, VISION_TINY, 40)
    return folder


@pytest.fixture
def config(models, tmp_path):
    """4 clips of the shapes world with 2 edits each; the filter keeps all."""
    return SynthesisConfig(
        output=tmp_path / "made",
        count=4,
        seed=1,
        base=str(models / "base"),
        clips=ClipsConfig(frames=2, size=16, least=16),
        devices=1,
        shared_noise=SharedNoiseConfig(sampling=2),
        filter=dataclasses.replace(KEEP_ALL, model=str(models / "clip")),
        validation=0.3,
    )
