"""Set before JAX is imported: enough threads that collectives of virtual devices cannot starve, and no cache of the user's."""

import os

os.environ.setdefault("NPROC", "16")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import logging
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

VIDEOS = Path(__file__).parents[2] / "shared" / "videos"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A compilation cache for this run, shared with the processes that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("diffusers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny random InstructPix2Pix-shaped folder, written by diffusers and transformers themselves."""
    from tests.support import factory

    return factory.save(tmp_path_factory.mktemp("models") / "tiny", factory.tiny())


@pytest.fixture(params=["car-turn.mp4", "man-skiing.mp4"])
def clip(request):
    """The real clips."""
    return real_clip(request.param)


@pytest.fixture
def car():
    return real_clip("car-turn.mp4")


@pytest.fixture
def skiing():
    return real_clip("man-skiing.mp4")


def real_clip(name: str) -> Path:
    path = VIDEOS / name
    if not path.is_file():
        pytest.skip(
            f"{path} is not here: the real clips lie in ../shared/videos, beside the repository"
        )
    return path
