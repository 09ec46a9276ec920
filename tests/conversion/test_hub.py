"""Models on the hub: what --push uploads, and what --model and diffusers download."""

import pytest

from ivid2vid_jax import convert
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder
from tests.support.command import run_command
from tests.support.hub_server import HubServer

LICENCES = ("--base-licence", "Apache-2.0", "--data-licence", "CC BY 4.0")
WEIGHTS = {
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
}
CONFIGS = {
    "model_index.json",
    "sampling.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
}
CODE = {"pipeline.py", "clips.py", "old_names.py"}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A loopback hub with which this process's clients speak."""
    hub_server = HubServer()
    hub_server.use(monkeypatch, tmp_path / "hub")
    yield hub_server
    hub_server.close()


def export(capsys, *words):
    return run_command(capsys, convert.COMMANDS, convert.run, "export", *words)


def test_export_pushes_the_folder_with_its_card(motion_source, tmp_path, server, capsys):
    output = tmp_path / "out"
    words = (motion_source, output, "--push", "owner/editor", "--private", *LICENCES)
    code, err, out = export(capsys, *words)
    assert code == 0, err
    assert f"uploaded it to owner/editor: {server.url}/owner/editor/commit/" in out
    local = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }
    assert server.files("owner/editor") == local | {".gitattributes": b""}
    assert local.keys() == WEIGHTS | CONFIGS | CODE | {"README.md"}
    assert server.private == {"owner/editor": True}
    card = local["README.md"].decode()
    assert (
        "# editor\n" in card and 'from_pretrained("owner/editor", trust_remote_code=True)' in card
    )
    assert "| licence of the data | CC BY 4.0 |" in card


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (("--push", "owner/editor"), "hf_loopback", "give --base-licence and --data-licence"),
        (("--push", "editor", *LICENCES), "hf_loopback", "editor must be owner/name"),
        (("--push", "stranger/editor", *LICENCES), "hf_loopback", "the Hugging Face hub refused"),
        (("--push", "owner/editor", *LICENCES), "wrong", "log in with `hf auth login`"),
    ],
)
def test_refused_pushes_write_nothing(
    motion_source, tmp_path, server, monkeypatch, capsys, words, token, message
):
    monkeypatch.setenv("HF_TOKEN", token)
    code, err, _ = export(capsys, motion_source, tmp_path / "out", *words)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists() and not server.commits


def test_a_failed_upload_keeps_the_folder(exported, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match=f"{exported} is complete, but .* `hf upload owner/new"):
        hub.upload_folder(exported, "owner/new")
    assert (exported / "model_index.json").is_file()


def test_a_push_without_a_network_is_one_line(server, exported, monkeypatch):
    server.close()
    with pytest.raises(
        UserError, match="owner/new: the Hugging Face hub refused or was not reached"
    ):
        hub.create_repo("owner/new")
    with pytest.raises(UserError, match="is complete, but its upload"):
        hub.upload_folder(exported, "owner/new")


def test_a_model_of_the_hub_is_what_we_need_of_it(exported, server, tmp_path):
    """Weights and configs, no code, no pictures, no other formats; the second time nothing."""
    server.commit_folder("owner/editor", exported)
    clutter = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"]
    clutter += ["editor.safetensors", "flax_model.msgpack", "samples/edit.mp4", ".gitattributes"]
    server.commit("owner/editor", dict.fromkeys(clutter, b"x"))
    folder = hub.resolve_model("owner/editor")
    assert set(server.fetched) == WEIGHTS | CONFIGS and len(server.fetched) == len(
        WEIGHTS | CONFIGS
    )
    assert open_pipeline_folder(folder).unet == open_pipeline_folder(exported).unet
    server.fetched.clear()
    assert hub.resolve_model("owner/editor") == folder and not server.fetched
    assert hub.download_from_hub("owner/editor", variant="fp16") and server.fetched == clutter[1:2]


def test_a_revision_is_pinned(server):
    first = server.commit("owner/editor", {"model_index.json": b'{"version": 1}'})
    second = server.commit("owner/editor", {"model_index.json": b'{"version": 2}'})
    for revision, version in ((first, 1), (second, 2), ("main", 2)):
        folder = hub.resolve_model(f"owner/editor@{revision}")
        assert (folder / "model_index.json").read_text() == f'{{"version": {version}}}'
    assert (hub.resolve_model("owner/editor") / "model_index.json").read_text() == '{"version": 2}'
    with pytest.raises(UserError, match=r"owner/editor@v9: .*Invalid rev|owner/editor@v9: .*404"):
        hub.resolve_model("owner/editor@v9")
    with pytest.raises(UserError, match="owner/nothing: no such folder, and the download"):
        hub.resolve_model("owner/nothing")


def test_diffusers_loads_a_pushed_model(exported, server, load_exported):
    """All files of the code are fetched, also those that pipeline.py imports."""
    server.commit_folder("owner/editor", exported)
    pipe = load_exported("owner/editor")
    assert type(pipe).__name__ == "InstructVid2VidPipeline" and pipe.config.steps == 7
    assert set(server.fetched) >= WEIGHTS | CODE


def test_diffusers_pushes_a_loaded_model(exported, server, pipe, load_exported):
    """`pipe.push_to_hub` uploads the code too."""
    pipe.push_to_hub("owner/tuned")
    files = server.files("owner/tuned")
    assert files.keys() >= WEIGHTS | CODE | {"model_index.json", "sampling.json"}
    assert load_exported("owner/tuned").config.steps == 7
