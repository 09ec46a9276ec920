"""Pipeline folders in diffusers' layout, and CLIP folders in transformers' layout.

A pipeline folder holds model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import (
    AutoencoderConfig,
    AutoencoderKL,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    UNetConfig,
)
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights import checkpoint_kinds, components, safetensors_io
from ivid2vid_jax.weights.inflate import unet_initializer

log = logging.getLogger(__name__)

CONFIGS: dict[str, type[UNetConfig] | type[AutoencoderConfig] | type[CLIPTextConfig]] = {
    "unet": UNetConfig,
    "vae": AutoencoderConfig,
    "text_encoder": CLIPTextConfig,
}
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclasses.dataclass
class PipelineFolder:
    """A pipeline folder's configs; its weights stay on disk (`load_params` reads them)."""

    path: Path
    unet: UNetConfig
    vae: AutoencoderConfig
    text_encoder: CLIPTextConfig
    scheduler: dict  # content of scheduler_config.json
    sampling: dict  # content of sampling.json, {} if there is none
    # whether a PyTorch key of the U-Net's files is skipped; None: no key is
    is_excluded: Callable[[str], bool] | None = None
    # folder of the autoencoder's files, if it is not the pipeline's own
    vae_path: Path | None = None

    @property
    def models(self) -> dict[str, Any]:
        """Config of each component that has weights."""
        return {name: getattr(self, name) for name in CONFIGS}

    def component_dir(self, component: str) -> Path:
        """The folder of a component's files."""
        if component == "vae" and self.vae_path:
            return self.vae_path
        return self.path / component

    def key_filter(self, component: str) -> Callable[[str], bool] | None:
        """The argument `skip` of `components.load_component` for a component."""
        return self.is_excluded if component == "unet" else None

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer's files."""
        return self.path / "tokenizer"

    @property
    def text_length(self) -> int:
        """Tokens of a text, after padding."""
        return self.text_encoder.max_position_embeddings

    def fingerprint(self, parts: tuple[str, ...] = tuple(CONFIGS)) -> dict[str, str]:
        """SHA-256 of each weight file of the components `parts`."""
        return {
            f"{name}/{file.name}": file_sha256(file)
            for name in parts
            for file in safetensors_io.find_files(self.component_dir(name), components.STEMS[name])
        }

    def write(
        self, path: Path, params: dict[str, Any], dtype, variant: str | None, max_shard_bytes: int
    ) -> None:
        """Writes the whole pipeline folder into an empty folder."""
        for name, config in self.models.items():
            components.save_component(
                name, path / name, params[name], dtype, variant, max_shard_bytes
            )
            write_json(path / name / "config.json", config.to_json())
        shutil.copytree(self.tokenizer, path / "tokenizer")
        (path / "scheduler").mkdir()
        write_json(path / "scheduler" / "scheduler_config.json", self.scheduler)
        write_json(path / "model_index.json", model_index(self))
        if self.sampling:
            write_json(path / "sampling.json", self.sampling)


@dataclasses.dataclass
class ClipFolder:
    """A CLIP model in transformers' layout: weights, configs and tokenizer files in one folder."""

    path: Path
    clip: CLIPConfig
    preprocessor: dict  # content of preprocessor_config.json: image_mean, image_std, size, ...
    tokenizer: Path

    @property
    def models(self) -> dict[str, Any]:
        """Config of the only component."""
        return {"clip": self.clip}

    def component_dir(self, component: str) -> Path:
        """The folder of the weights."""
        return self.path

    def key_filter(self, component: str) -> None:
        """No key is skipped; see `PipelineFolder.key_filter`."""

    @property
    def text_length(self) -> int:
        """Tokens of a text, after padding."""
        return self.clip.text.max_position_embeddings

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of each weight file."""
        return {
            file.name: file_sha256(file)
            for file in safetensors_io.find_files(self.path, components.STEMS["clip"])
        }

    def write(
        self, path: Path, params: dict[str, Any], dtype, variant: str | None, max_shard_bytes: int
    ) -> None:
        """Writes the whole CLIP folder into an empty folder."""
        components.save_component("clip", path, params["clip"], dtype, variant, max_shard_bytes)
        write_json(path / "config.json", self.clip.to_json())
        write_json(path / "preprocessor_config.json", self.preprocessor)
        for name in TOKENIZER_FILES:
            if (self.tokenizer / name).is_file():
                shutil.copy(self.tokenizer / name, path / name)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_clip_folder(path: str | os.PathLike) -> ClipFolder:
    """Reads the configs of a CLIP folder; UserError names what is missing or not understood."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder")
    config = read_json(path / "config.json")
    if config.get("model_type") != "clip":
        raise UserError(
            f"{path}: is a {config.get('model_type', 'folder without model_type')}, "
            "not a CLIP model"
        )
    try:
        clip = CLIPConfig.from_json(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path / 'config.json'}: {error}") from error
    return ClipFolder(path, clip, read_json(path / "preprocessor_config.json"), path)


def open_pipeline_folder(path: str | os.PathLike) -> PipelineFolder:
    """Reads the configs of a pipeline folder.

    Components that this package does not use (safety_checker, ...) are skipped and logged.
    Raises UserError that names the part that is missing or not understood.
    """
    path = Path(path)
    check_model_path(path)
    if not (path / "model_index.json").is_file():
        raise UserError(
            f"{path}: has no model_index.json, so it is not a pipeline folder; give the folder "
            "above unet/ and vae/"
        )
    index = read_json(path / "model_index.json")
    for name, value in index.items():
        if not name.startswith("_") and name not in PARTS and isinstance(value, list) and value[0]:
            log.info("%s: %s is not needed and is skipped", path.name, name)
    configs: dict[str, Any] = {
        name: read_config(cls, path / name / "config.json") for name, cls in CONFIGS.items()
    }
    unet, text = configs["unet"], configs["text_encoder"]
    if unet.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"{path}: the U-Net expects text of width {unet.cross_attention_dim}, the text encoder "
            f"gives {text.hidden_size}"
        )
    sampling = path / "sampling.json"
    return PipelineFolder(
        path,
        **configs,
        scheduler=read_json(path / "scheduler" / "scheduler_config.json"),
        sampling=read_json(sampling) if sampling.is_file() else {},
    )


def replace_vae(folder: PipelineFolder, path: Path) -> PipelineFolder:
    """The pipeline with another autoencoder: that of a pipeline folder, or a folder of its own.

    Raises UserError if there is none, or if its latents do not have the same number of channels.
    """
    vae_path = path / "vae" if (path / "model_index.json").is_file() else path
    if not (vae_path / "config.json").is_file():
        raise UserError(f"--vae {path}: has no config.json; give a pipeline or autoencoder folder")
    vae = read_config(AutoencoderConfig, vae_path / "config.json")
    if vae.latent_channels != folder.vae.latent_channels:
        raise UserError(
            f"--vae {path}: has {vae.latent_channels} latent channels, but the model's networks "
            f"take {folder.vae.latent_channels}"
        )
    return dataclasses.replace(folder, vae=vae, vae_path=vae_path)


def check_model_path(path: Path) -> None:
    """Raises UserError for a file, and for a folder of a kind that is not supported."""
    if path.is_file():
        checkpoint_kinds.check_tensors_kind(path, checkpoint_kinds.open_tensors(path))
        raise UserError(
            f"{path}: is a checkpoint in one file; make a pipeline folder of it first: "
            f"python -m ivid2vid_jax.convert import {path} OUT --base FOLDER"
        )
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder")
    checkpoint_kinds.check_folder_kind(path)


def read_config(cls: Any, file: Path) -> Any:
    """Reads a component's config.json; UserError names what is not understood."""
    try:
        return cls.from_json(read_json(file))
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"{file}: {error}") from error


@functools.cache
def param_initializer(component: str, config: Any) -> Callable[[jax.Array], Any]:
    """The function key -> initial parameters of a component; JAX traces it once per config."""
    if component == "unet":
        return unet_initializer(config)
    if component == "vae":
        side = config.downscale * 2
        shape = (1, side, side, config.in_channels)
        return lambda key: AutoencoderKL(config).init(key, jnp.zeros(shape))["params"]
    ids = np.zeros((1, 1), np.int32)
    if component == "clip":
        side = config.vision.image_size
        shape = (1, side, side, config.vision.num_channels)
        return lambda key: CLIPModel(config).init(key, jnp.zeros(shape), ids)["params"]
    return lambda key: CLIPTextModel(config).init(key, ids)["params"]


def param_shapes(component: str, config: Any) -> Any:
    """The parameter tree of a component as jax.ShapeDtypeStruct leaves."""
    return jax.eval_shape(param_initializer(component, config), jax.random.key(0))


def load_params(
    folder: PipelineFolder | ClipFolder,
    dtype=None,
    shardings: dict | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """Loads the parameters of a folder's models: component -> tree.

    Components are unet, vae and text_encoder, or clip. Arguments: see
    `components.load_component`; shardings: component -> shardings.
    """
    return {
        name: components.load_component(
            name,
            folder.component_dir(name),
            param_shapes(name, config),
            dtype,
            (shardings or {}).get(name),
            variant,
        )
        for name, config in folder.models.items()
    }


def stored_params(
    folder: PipelineFolder | ClipFolder, variant: str | None = None
) -> dict[str, Any]:
    """The parameters as `load_params` returns them, each leaf on disk until it is read."""
    return {
        name: components.open_component(
            name, folder.component_dir(name), param_shapes(name, config), variant
        )
        for name, config in folder.models.items()
    }


def save_folder(
    path: str | os.PathLike,
    folder: PipelineFolder | ClipFolder,
    params: dict[str, Any],
    dtype: Any = None,
    variant: str | None = None,
    max_shard_bytes: int = components.MAX_SHARD_BYTES,
    replace: bool = False,
    finish: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a pipeline or CLIP folder under a temporary name, then renames it.

    The tokenizer's files are copied from `folder.tokenizer`.

    Args:
        path: the new folder.
        folder: configs.
        params: component -> parameter tree.
        dtype: casts floating leaves; None keeps each.
        variant: "fp16" or None, part of the file names.
        max_shard_bytes: above this size a component's weights are split into shards.
        replace: whether to replace an existing folder.
        finish: called with the temporary folder before it is renamed, to add files.

    Raises:
        UserError: `path` exists and `replace` is not set.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError(f"{path}: exists already; give a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, replace) as temporary:
        temporary.mkdir()
        folder.write(temporary, params, dtype, variant, max_shard_bytes)
        finish(temporary)


def model_index(folder: PipelineFolder) -> dict:
    """The content of model_index.json.

    Its pipeline class is diffusers' own where that reads the folder as it is, else ours.
    """
    unet = folder.unet.to_json()["_class_name"]
    stock = {4: "StableDiffusionPipeline", 8: "StableDiffusionInstructPix2PixPipeline"}
    name = stock.get(folder.unet.in_channels) if unet == "UNet2DConditionModel" else None
    return {
        "_class_name": name or "InstructVid2VidPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", folder.scheduler.get("_class_name", "DDIMScheduler")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers" if name else "ivid2vid_jax", unet],
        "vae": ["diffusers", "AutoencoderKL"],
    }
