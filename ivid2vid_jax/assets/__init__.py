"""Embedded models and sample clips of the shapes world; this package trained the models itself.

The training recipes are in configs/embedded/.
"""

from importlib import resources
from pathlib import Path

MODELS = ("shapes-base", "shapes-edit", "shapes-clip")  # text to image, editor, CLIP
DEFAULT = "shapes-edit"


def folder() -> Path:
    """The folder of the embedded files."""
    return Path(str(resources.files(__name__)))


def is_embedded(path: Path) -> bool:
    """Whether a model's folder is one of the embedded ones."""
    return path.parent == folder()


def clip(name: Path | None) -> Path:
    """The path of a sample clip by its name; the first one for None; other paths unchanged."""
    samples = clips()
    if name is None:
        return next(iter(samples.values()))
    return name if name.exists() else samples.get(str(name), name)


def clips() -> dict[str, Path]:
    """Name -> file of the sample clips."""
    files = sorted((folder() / "clips").iterdir())
    return {path.stem: path for path in files if path.suffix == ".mp4"}
