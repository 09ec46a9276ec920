"""What is built and installed elsewhere works there: assets inside, commands found, nothing of the repository needed."""

import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def call(*words, **options) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=1200, **options
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of what git has here."""
    folder = tmp_path_factory.mktemp("built")
    call("git", "clone", "-q", ROOT, folder / "clone")
    call(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder, cwd=folder / "clone")
    call(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--wheel-dir",
        folder,
        folder / "clone",
    )
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Python of an environment that has the wheel, and its dependencies from this one."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    call(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    site = Path(
        call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(here) + "\n")
    call(
        python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", *built.glob("*.whl")
    )
    return python


def in_git(folder: str) -> set[str]:
    return set(call("git", "ls-files", folder, cwd=ROOT).split())


def test_the_wheel_holds_the_package_and_its_assets_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == in_git("ivid2vid_jax")
    assert any(name.startswith("ivid2vid_jax/assets/clips/") for name in names)


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    call(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--wheel-dir",
        tmp_path / "again",
        sdist,
    )
    (again,), (first,) = (tmp_path / "again").glob("*.whl"), built.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(first).namelist())


@pytest.mark.parametrize(
    "command", ["edit", "train", "app", "prepare", "evaluate", "plan", "synthesize", "convert"]
)
def test_commands_are_there_outside_the_repository(installed, command, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = call(
        installed,
        "-c",
        "import ivid2vid_jax; print(ivid2vid_jax.__file__)",
        cwd=tmp_path,
        env=environment,
    )
    assert where.startswith(str(installed.parents[1]))
    assert "usage:" in call(
        installed, "-m", f"ivid2vid_jax.{command}", "--help", cwd=tmp_path, env=environment
    )


def test_it_edits_and_trains_outside_the_repository(installed, tmp_path):
    """The embedded editor, a sample clip of the package, a step of the default recipe."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call(
        installed,
        "-m",
        "ivid2vid_jax.edit",
        "--instruction",
        "make the circle blue",
        "--steps",
        "2",
        cwd=tmp_path,
        env=environment,
    )
    assert (tmp_path / "edited.mp4").stat().st_size and json.loads(
        (tmp_path / "edited.mp4.json").read_text()
    )["frames"] > 1
    call(
        installed,
        "-m",
        "ivid2vid_jax.train",
        "--steps",
        "1",
        "--optim.warmup",
        "0",
        "--log.benchmark",
        "0",
        "--output",
        "run",
        cwd=tmp_path,
        env=environment,
    )
    assert (tmp_path / "run" / "pipeline" / "unet" / "config.json").is_file()


def test_the_app_serves_outside_the_repository(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONUNBUFFERED": "1"
    }
    process = subprocess.Popen(
        [installed, "-m", "ivid2vid_jax.app", "--port", "0"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(
            line.split()[3].rstrip(";")
            for line in process.stdout
            if line.startswith("edit clips at")
        )
        with urllib.request.urlopen(address) as page:
            assert page.status == 200 and b"gradio" in page.read()
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
