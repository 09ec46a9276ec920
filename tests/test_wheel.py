"""The built package works elsewhere: assets included, commands available, repository not needed."""

import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip"]
pytestmark = pytest.mark.slow


def run(*command, **options) -> str:
    """Runs a command that must succeed; returns its stdout."""
    arguments = [str(word) for word in command]
    process = subprocess.run(arguments, capture_output=True, text=True, timeout=1200, **options)
    assert process.returncode == 0, f"{process.stdout[-3000:]}\n{process.stderr[-3000:]}"
    return process.stdout


def files_in_git(folder: str) -> set[str]:
    return set(run("git", "ls-files", folder, cwd=ROOT).split())


def files_in_wheel(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of the last commit."""
    folder = tmp_path_factory.mktemp("built")
    clone = folder / "clone"
    run("git", "clone", "-q", ROOT, clone)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder, cwd=clone)
    run(*PIP, "wheel", "-q", "--no-deps", "--wheel-dir", folder, clone)
    return folder


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """Python of a new environment with the wheel; dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (Path(site) / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    (wheel,) = built.glob("*.whl")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
    return python


@pytest.fixture
def outside(tmp_path):
    """Options of `run` for a command outside the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": environment}


def test_the_wheel_contains_the_package_and_its_assets_only(built):
    (wheel,) = built.glob("*.whl")
    files = {name for name in files_in_wheel(wheel) if ".dist-info/" not in name}
    assert files == files_in_git("ivid2vid_jax")
    assert any(name.startswith("ivid2vid_jax/assets/clips/") for name in files)


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    (sdist,), (expected,) = built.glob("*.tar.gz"), built.glob("*.whl")
    run(*PIP, "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path, sdist)
    (rebuilt,) = tmp_path.glob("*.whl")
    assert files_in_wheel(rebuilt) == files_in_wheel(expected)


@pytest.mark.parametrize(
    "command", ["edit", "train", "app", "prepare", "evaluate", "plan", "synthesize", "convert"]
)
def test_commands_are_available_outside_the_repository(python, command, outside):
    package = run(python, "-c", "import ivid2vid_jax; print(ivid2vid_jax.__file__)", **outside)
    assert package.startswith(str(python.parents[1]))
    assert "usage:" in run(python, "-m", f"ivid2vid_jax.{command}", "--help", **outside)


def test_the_package_edits_and_trains_outside_the_repository(python, tmp_path, outside):
    """With the embedded editor, a sample clip, and one step of the default recipe."""
    options = ["--instruction", "make the circle blue", "--steps", "2"]
    run(python, "-m", "ivid2vid_jax.edit", *options, **outside)
    assert (tmp_path / "edited.mp4").stat().st_size
    assert json.loads((tmp_path / "edited.mp4.json").read_text())["frames"] > 1
    options = ["--steps", "1", "--optim.warmup", "0", "--log.benchmark", "0", "--output", "run"]
    run(python, "-m", "ivid2vid_jax.train", *options, **outside)
    assert (tmp_path / "run" / "pipeline" / "unet" / "config.json").is_file()


def test_the_app_serves_outside_the_repository(python, outside):
    outside["env"]["PYTHONUNBUFFERED"] = "1"
    command = [python, "-m", "ivid2vid_jax.app", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **outside)
    try:
        line = next(line for line in process.stdout if line.startswith("edit clips at"))
        with urllib.request.urlopen(line.split()[3].rstrip(";")) as page:
            assert page.status == 200 and b"gradio" in page.read()
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
