"""The embedded default: small pipelines of the shapes world, trained by this package (configs/embedded/), and clips to try them on."""

from importlib import resources
from pathlib import Path

MODELS = ("shapes-base", "shapes-edit", "shapes-clip")  # text to image, the editor, CLIP
DEFAULT = "shapes-edit"


def folder() -> Path:
    return Path(str(resources.files(__name__)))


def clip(name: Path | None) -> Path:
    """A sample clip by its bare name, the first where None; any other path as it is."""
    known = clips()
    if name is None:
        return next(iter(known.values()))
    return name if name.exists() else known.get(str(name), name)


def clips() -> dict[str, Path]:
    """Name -> file of the sample clips."""
    return {
        path.stem: path for path in sorted((folder() / "clips").iterdir()) if path.suffix == ".mp4"
    }
