"""Resolving `--model`."""

import shutil

import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.weights import hub


def test_resolve_model(tiny, tmp_path):
    assert hub.resolve_model(tiny) == tiny
    shutil.copytree(tiny, tmp_path / "run" / "pipeline")
    assert hub.resolve_model(tmp_path / "run") == tmp_path / "run" / "pipeline"
    with pytest.raises(UserError, match="no such model folder"):
        hub.resolve_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"nobody/such-a-model: .*Hugging Face hub failed"):
        hub.resolve_model("nobody/such-a-model")
