"""Pipeline folders in diffusers' layout: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/."""

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

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
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights import components, safetensors_io
from ivid2vid_jax.weights.inflate import init_unet_params

log = logging.getLogger(__name__)

CONFIGS = {"unet": UNetConfig, "vae": AutoencoderConfig, "text_encoder": CLIPTextConfig}
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
    """What a pipeline folder holds, parameters apart.

    scheduler: the content of scheduler_config.json. sampling: the content of sampling.json, {} where there is none. left_out: the U-Net's keys, by
    PyTorch's names, that its files hold and nobody reads; None for none.
    """

    path: Path
    unet: UNetConfig
    vae: AutoencoderConfig
    text_encoder: CLIPTextConfig
    scheduler: dict
    sampling: dict
    is_excluded: Callable[[str], bool] | None = None

    @property
    def models(self) -> dict[str, Any]:
        """Component -> config of what has weights."""
        return {name: getattr(self, name) for name in CONFIGS}

    def component_dir(self, component: str) -> Path:
        """Where a component's files lie."""
        return self.path / component

    def skip(self, component: str) -> Callable[[str], bool] | None:
        """The component's keys that are not read, as `components.load` takes them."""
        return self.is_excluded if component == "unet" else None

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def text_length(self) -> int:
        """Tokens of a text."""
        return self.text_encoder.max_position_embeddings

    def fingerprint(self, parts: tuple[str, ...] = tuple(CONFIGS)) -> dict[str, str]:
        """sha256 of each weight file of the parts."""
        return {
            f"{name}/{file.name}": file_sha256(file)
            for name in parts
            for file in safetensors_io.find_files(self.component_dir(name), components.STEMS[name])
        }

    def write(
        self, path: Path, params: dict[str, Any], dtype, variant: str | None, max_shard_bytes: int
    ) -> None:
        """Everything that makes up the folder, into an empty one."""
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
    """A CLIP model in transformers' layout: weights, configs and the tokenizer's files side by side.

    preprocessor: the content of preprocessor_config.json: image_mean, image_std, size, ...
    """

    path: Path
    clip: CLIPConfig
    preprocessor: dict
    tokenizer: Path

    @property
    def models(self) -> dict[str, Any]:
        return {"clip": self.clip}

    def component_dir(self, component: str) -> Path:
        return self.path

    def skip(self, component: str) -> None:
        """Nothing is left out."""

    @property
    def text_length(self) -> int:
        return self.clip.text.max_position_embeddings

    def fingerprint(self) -> dict[str, str]:
        """sha256 of each weight file."""
        return {
            file.name: file_sha256(file)
            for file in safetensors_io.find_files(self.path, components.STEMS["clip"])
        }

    def write(
        self, path: Path, params: dict[str, Any], dtype, variant: str | None, max_shard_bytes: int
    ) -> None:
        components.save_component("clip", path, params["clip"], dtype, variant, max_shard_bytes)
        write_json(path / "config.json", self.clip.to_json())
        write_json(path / "preprocessor_config.json", self.preprocessor)
        for name in TOKENIZER_FILES:
            if (self.tokenizer / name).is_file():
                shutil.copy(self.tokenizer / name, path / name)


def file_sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def open_clip_folder(path: str | os.PathLike) -> ClipFolder:
    """Reads the configs of a CLIP folder. Raises UserError that names what is missing or not understood."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder")
    try:
        config = read_json(path / "config.json")
        if config.get("model_type") != "clip":
            raise UserError(
                f"{path}: is a {config.get('model_type', 'folder without model_type')}, not a CLIP model"
            )
        clip = CLIPConfig.from_json(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path / 'config.json'}: {error}") from error
    return ClipFolder(path, clip, read_json(path / "preprocessor_config.json"), path)


def open_pipeline_folder(path: str | os.PathLike) -> PipelineFolder:
    """Reads the configs of a pipeline folder. Components that are no models here (safety_checker, ...) are skipped by name.

    Raises UserError that names the part that is missing or not understood.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder")
    if not (path / "model_index.json").is_file():
        raise UserError(
            f"{path}: has no model_index.json, so it is not a pipeline folder; give the folder above unet/ and vae/"
        )
    index = read_json(path / "model_index.json")
    for name, value in index.items():
        if not name.startswith("_") and name not in PARTS and isinstance(value, list) and value[0]:
            log.info("%s: %s is not needed and left unread", path.name, name)
    configs = {}
    for name, cls in CONFIGS.items():
        file = path / name / "config.json"
        try:
            configs[name] = cls.from_json(read_json(file))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise (
                error if isinstance(error, UserError) else UserError(f"{file}: {error}")
            ) from error
    unet, text = configs["unet"], configs["text_encoder"]
    if unet.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"{path}: the U-Net wants text of width {unet.cross_attention_dim}, the text encoder gives {text.hidden_size}"
        )
    sampling = path / "sampling.json"
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    return PipelineFolder(
        path,
        **configs,
        scheduler=scheduler,
        sampling=read_json(sampling) if sampling.is_file() else {},
    )


def param_initializer(component: str, config: Any) -> Callable[[jax.Array], Any]:
    """Key -> a component's fresh parameters."""
    if component == "unet":
        return lambda key: init_unet_params(config, key)
    if component == "vae":
        side = config.downscale * 2
        return lambda key: AutoencoderKL(config).init(
            key, jnp.zeros((1, side, side, config.in_channels))
        )["params"]
    ids = jnp.zeros((1, 1), jnp.int32)
    if component == "clip":
        side = config.vision.image_size
        return lambda key: CLIPModel(config).init(
            key, jnp.zeros((1, side, side, config.vision.num_channels)), ids
        )["params"]
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
    """The parameters of a folder's models: {"unet": tree, "vae": tree, "text_encoder": tree}, or {"clip": tree}; see `components.load`."""
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
    """The parameters as `load_params` gives them, each leaf still on disk until it is asked for."""
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
    dtype=None,
    variant: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    replace: bool = False,
    finish: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a pipeline or CLIP folder: aside first, then renamed, so that a folder is whole or absent.

    The tokenizer's files are copied from `folder.tokenizer`; finish: adds to what was written aside. Raises UserError where `path` exists
    already, unless `replace`.
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
    """model_index.json: our pipeline's name, or the stock one that reads the folder as it is."""
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
