from importlib.util import find_spec

import pytest

from ivid2vid_jax.conversion import exporter
from tests.conversion import checkpoints
from tests.conversion.edits import NETS, save_random_net
from tests.support import factory, foreign
from tests.support.references import diffusers, torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny nets are slower with several threads, far slower on a busy machine."""
    if find_spec("torch") is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny pipeline with a U-Net of two levels, as the foreign checkpoints of these tests."""
    return factory.save_pipeline(tmp_path_factory.mktemp("models") / "tiny", factory.tiny_parts())


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """A base folder for single files: it has a tokenizer and a scheduler, and text of width 64."""
    parts = dict(
        unet=factory.unet(factory.UNET_TINY | checkpoints.SD1),
        vae=factory.vae(checkpoints.VAE),
        text_encoder=factory.text_encoder(checkpoints.TEXT),
        scheduler=factory.ddim(),
    )
    return factory.save_pipeline(tmp_path_factory.mktemp("wide") / "folder", parts)


@pytest.fixture
def motion_file(tmp_path):
    """A file of AnimateDiff's motion modules."""
    state = checkpoints.state_dict(checkpoints.motion_adapter())
    torch.save(foreign.animatediff(state), tmp_path / "mm.ckpt")
    return tmp_path / "mm.ckpt"


@pytest.fixture(scope="session")
def code_cache(tmp_path_factory):
    """Where diffusers puts the code of loaded folders."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("code"))
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def load_exported(code_cache):
    """Loads an exported folder as its users do; it shows no progress bar."""

    def load(folder, **options):
        options |= dict(trust_remote_code=True)
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture(scope="session")
def motion_source(tiny, tmp_path_factory):
    """A pipeline folder with the tiny "motion" net, random weights."""
    return save_random_net(tmp_path_factory.mktemp("motion"), "source", NETS["motion"][0], tiny)


@pytest.fixture(scope="session")
def exported(motion_source, tmp_path_factory):
    """Its export: a folder with diffusers' UNetMotionModel."""
    folder = tmp_path_factory.mktemp("exported") / "motion"
    exporter.export_folder(motion_source, folder)
    return folder


@pytest.fixture
def pipe(exported, load_exported):
    """The loaded export."""
    return load_exported(exported)
