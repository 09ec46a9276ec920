import pytest
import torch

from tests.conversion import checkpoints
from tests.support import factory, foreign


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny pipeline with a U-Net of two levels, as the foreign checkpoints of these tests."""
    return factory.save(tmp_path_factory.mktemp("models") / "tiny", factory.tiny())


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """A base folder for single files: it has a tokenizer and a scheduler, and text of width 64."""
    parts = dict(
        unet=factory.unet(factory.UNET_TINY | checkpoints.SD1),
        vae=factory.vae(checkpoints.VAE),
        text_encoder=factory.text_encoder(checkpoints.TEXT),
        scheduler=factory.ddim(),
    )
    return factory.save(tmp_path_factory.mktemp("wide") / "folder", parts)


@pytest.fixture
def motion_file(tmp_path):
    """A file of AnimateDiff's motion modules."""
    state = checkpoints.state_dict(checkpoints.motion_adapter())
    torch.save(foreign.animatediff(state), tmp_path / "mm.ckpt")
    return tmp_path / "mm.ckpt"
