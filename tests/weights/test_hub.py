"""Resolving `--model`."""

import shutil

import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights import hub


def test_resolve_model(tiny, tmp_path, monkeypatch):
    assert hub.resolve_model(tiny) == tiny
    shutil.copytree(tiny, tmp_path / "run" / "pipeline")
    assert hub.resolve_model(tmp_path / "run") == tmp_path / "run" / "pipeline"
    with pytest.raises(UserError, match="no such model folder"):
        hub.resolve_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"shapes-edti: no .*did you mean shapes-edit\?"):
        hub.resolve_model("shapes-edti")
    for path in ("./runs", "../runs", "/runs", "~/runs", "./runs/mine"):
        with pytest.raises(UserError, match=f"{path}: no such model folder"):
            hub.resolve_model(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"hub failed .*; did you mean runs/mine\?"):
        hub.resolve_model("runs/mien")
    with pytest.raises(UserError, match=r"nobody/such-a-model: .*Hugging Face hub failed"):
        hub.resolve_model("nobody/such-a-model")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}),
        ("config.json", {"architectures": ["CLIPModel"]}),
    ],
)
def test_weights_of_an_unsupported_kind_are_not_downloaded(tmp_path, monkeypatch, name, config):
    downloads = []

    def download(repo_id, revision, allow_patterns, ignore_patterns):
        downloads.append(allow_patterns)
        write_json(tmp_path / name, config)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    unsupported = "XL" in str(config)
    if unsupported:
        with pytest.raises(UserError, match=r"is Stable Diffusion XL .*; only"):
            hub.resolve_model("owner/name")
    else:
        assert hub.resolve_model("owner/name") == tmp_path
    weights = [any("safetensors" in pattern for pattern in patterns) for patterns in downloads]
    assert weights == ([False] if unsupported else [False, True])
