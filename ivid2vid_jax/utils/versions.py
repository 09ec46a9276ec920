"""Versions of installed packages, stored with results."""

import importlib.metadata
from collections.abc import Iterable

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
