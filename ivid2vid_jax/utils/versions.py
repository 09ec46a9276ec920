"""Versions of installed packages, stored with results; the command that installs an extra."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("ivid2vid_jax", "jax", "flax", "numpy", "av")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Package name -> installed version, or "not installed"."""
    installed = {}
    for name in packages:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def install_command(extra: str) -> str:
    """The command that installs an extra of this package, for error messages.

    A clone of the repository is named, or "." if it is the current folder; from a wheel, which has
    no setup.py beside the package, the extra is installed by the package's name.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "setup.py").is_file():
        return f'pip install "ivid2vid_jax[{extra}]"'
    place = "." if folder == Path.cwd() else str(folder)
    return f'pip install -e "{place}[{extra}]"'
