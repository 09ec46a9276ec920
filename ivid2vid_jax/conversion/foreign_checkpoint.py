"""A checkpoint in another layout: its tensors under diffusers' names, and its configs."""

import dataclasses
from pathlib import Path
from typing import Any

from ivid2vid_jax.weights import components, safetensors_io
from ivid2vid_jax.weights.checkpoint_kinds import open_tensors
from ivid2vid_jax.weights.pipeline_folder import CONFIGS
from ivid2vid_jax.weights.safetensors_io import LazyTensor

Tensors = dict[str, LazyTensor]  # key -> tensor


@dataclasses.dataclass
class ForeignCheckpoint:
    """A checkpoint of which only headers have been read."""

    path: Path  # the file or folder
    family: str  # what it is, in words
    components: dict[str, Tensors] = dataclasses.field(default_factory=dict)
    configs: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `components`
    unused: dict[str, str] = dataclasses.field(default_factory=dict)  # name in the file -> reason
    motion: Tensors = dataclasses.field(default_factory=dict)  # motion modules without a U-Net
    # UNetConfig fields that go with `motion`
    motion_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    scheduler: dict | None = None  # content of scheduler_config.json
    sampling: dict = dataclasses.field(default_factory=dict)  # content of sampling.json
    folder: Path | None = None  # pipeline folder, if it is one
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def tokenizer(self) -> Path | None:
        """The pipeline folder that contains tokenizer/; None if there is none."""
        return self.folder if self.folder and (self.folder / "tokenizer").is_dir() else None

    @property
    def missing(self) -> list[str]:
        """The parts of a pipeline folder that a base must supply."""
        parts = [name for name in CONFIGS if name not in self.components]
        if self.tokenizer is None:
            parts.append("tokenizer")
        if self.scheduler is None:
            parts.append("scheduler")
        return parts


def open_component_tensors(component: str, folder: Path) -> Tensors:
    """A component's tensors by canonical key, from safetensors or .bin files, sharded or not."""
    stem = components.STEMS[component] if component != "text_encoder" else "pytorch_model"
    index, single_file = folder / f"{stem}.bin.index.json", folder / f"{stem}.bin"
    if any(folder.glob("*.safetensors")) or not (single_file.is_file() or index.is_file()):
        paths = safetensors_io.find_files(folder, components.STEMS[component])
    else:
        paths = [single_file] if single_file.is_file() else safetensors_io.shard_paths(index)
    return {
        components.canonical_key(component, name): tensor
        for path in paths
        for name, tensor in open_tensors(path).items()
        if not components.is_ignored(name)
    }


def tensor_shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by key."""
    return {key: tensor.shape for key, tensor in tensors.items()}
