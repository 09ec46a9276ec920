"""Versions of installed packages, for records of results."""

import importlib.metadata
from collections.abc import Iterable

PACKAGES = ("ivid2vid_jax", "jax", "flax", "numpy", "av")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
