"""The command of the app: options, its private folder, a server in a process of its own."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ivid2vid_jax import assets
from ivid2vid_jax.app import __main__ as app
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import versions
from tests.support.command import run_command
from tests.support.gradio_client import edit_inputs, path_of, visitor

ROOT = Path(__file__).parents[2]


def test_the_folder_is_private_and_removed_at_the_end(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/before")
    with pytest.raises(RuntimeError), app.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "upload").write_text("x")
        raise RuntimeError
    assert not folder.exists() and os.environ["GRADIO_TEMP_DIR"] == "/before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "99999"], "--port 99999 must be between 0 and 65535"),
        (["--limits.seconds", "0"], "--limits.seconds 0.0 must be above 0"),
        (["--model", "/no/such"], "/no/such: no such model folder"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(capsys, options, message):
    pytest.importorskip("gradio")
    code, stderr, _ = run_command(capsys, app.AppArgs, app.run, *options)
    assert code == 2 and message in stderr and stderr.count("\n") == 1


def test_a_port_that_is_in_use_is_named(pipe, tmp_path):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        args = app.AppArgs(port=server.getsockname()[1])
        message = f"--port {args.port}: address already in use; give another --port, or 0"
        with pytest.raises(UserError, match=message), app.serving(pipe, args, tmp_path):
            pass


def test_without_gradio_the_error_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, stderr, _ = run_command(capsys, app.AppArgs, app.run)
    assert code == 2 and 'pip install -e ".[app]"' in stderr


def test_the_install_hint_fits_where_the_package_is(monkeypatch, tmp_path):
    """A clone, from its folder or from another; an installed wheel."""
    assert versions.install_command("app") == 'pip install -e ".[app]"'
    monkeypatch.chdir(tmp_path)
    assert versions.install_command("app") == f'pip install -e "{ROOT}[app]"'
    monkeypatch.setattr(versions, "__file__", f"{tmp_path}/ivid2vid_jax/utils/versions.py")
    assert versions.install_command("app") == 'pip install "ivid2vid_jax[app]"'


def test_by_default_it_listens_on_this_machine_only():
    args = app.AppArgs()
    assert args.host == "127.0.0.1" and args.share is False


@pytest.mark.slow
def test_the_command_serves_and_removes_its_folder_on_sigterm(tiny, tmp_path):
    """A separate process with a real pipeline."""
    pytest.importorskip("gradio")
    argv = [sys.executable, "-m", "ivid2vid_jax.app", "--model", str(tiny), "--port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        address = next(
            (
                line.split()[3].rstrip(";")
                for line in process.stdout
                if line.startswith("edit clips at")
            ),
            None,
        )
        assert address, process.wait()
        with visitor(address) as (client, upload):
            _, edited, *_ = client.predict(
                *edit_inputs(upload(str(next(iter(assets.clips().values()))))), api_name="/edit"
            )
            assert path_of(edited).stat().st_size
        assert list(tmp_path.glob("ivid2vid-app-*/job-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and not list(tmp_path.glob("ivid2vid-app-*"))
    finally:
        process.kill()
