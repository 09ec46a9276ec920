"""Writes docs/api.md from docstrings: `python docs/make_api.py`."""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

PUBLIC = {
    "ivid2vid_jax.inference.pipeline": (
        "load",
        "Pipeline.edit",
        "Pipeline.edit_frames",
        "Pipeline.generate",
        "EditSettings",
    ),
    "ivid2vid_jax.video.read": ("open_clip", "Clip"),
    "ivid2vid_jax.video.write": ("write_clip",),
    "ivid2vid_jax.data.dataset": ("open_dataset",),
    "ivid2vid_jax.data.triplet": ("Triplet",),
    "ivid2vid_jax.training.loop": ("train",),
    "ivid2vid_jax.training.config": (
        "TrainConfig",
        "NetConfig",
        "OptimConfig",
        "DropConfig",
        "MeshConfig",
        "CheckpointConfig",
        "LogConfig",
    ),
    "ivid2vid_jax.diffusion.losses": ("LossConfig",),
    "ivid2vid_jax.training.metrics_log": ("read_metrics",),
    "ivid2vid_jax.training.checkpoints": (
        "Checkpoints",
        "Checkpoints.steps",
        "Checkpoints.restore",
    ),
    "ivid2vid_jax.weights.pipeline_folder": ("open_folder", "load_params", "save_folder"),
    "ivid2vid_jax.weights.inflate": ("inflate",),
    "ivid2vid_jax.diffusion.samplers": ("sampler",),
    "ivid2vid_jax.diffusion.guidance": ("branches",),
    "ivid2vid_jax.utils.errors": ("UserError",),
}


def entry(module, name: str) -> str:
    """A class with its fields as written, a function with its signature; the docstring below."""
    thing = module
    for part in name.split("."):
        thing = getattr(thing, part)
    lines = inspect.getsource(thing).splitlines()
    if inspect.isclass(thing):
        shown = "\n".join(
            [f"class {name}", *(fields(lines) if dataclasses.is_dataclass(thing) else ())]
        )
    else:
        end = next(i for i, line in enumerate(lines) if line.endswith(":"))
        shown = inspect.cleandoc("\n".join(lines[: end + 1])).removeprefix("def ").removesuffix(":")
    return (
        "\n\n".join(
            part for part in (f"### {name}", f"```python\n{shown}\n```", described(thing)) if part
        )
        + "\n"
    )


def fields(lines: list[str]) -> list[str]:
    """The source lines of a dataclass's fields, to the last line of each, with their comments."""
    found = [
        node for node in ast.parse("\n".join(lines)).body[0].body if isinstance(node, ast.AnnAssign)
    ]
    return [
        line.removesuffix("") for node in found for line in lines[node.lineno - 1 : node.end_lineno]
    ]


def described(thing) -> str:
    """The docstring; nothing where dataclasses wrote one by itself."""
    told = inspect.getdoc(thing) or ""
    return "" if told.startswith(f"{thing.__name__}(") else told


def text() -> str:
    parts = ["# API reference\n\nWritten by `python docs/make_api.py` from the docstrings.\n"]
    for path, names in PUBLIC.items():
        module = importlib.import_module(path)
        parts += [f"## {path}\n", *(entry(module, name) for name in names)]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(text())
