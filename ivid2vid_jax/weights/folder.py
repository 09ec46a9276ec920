"""Pipeline folders in diffusers' layout: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/."""

import dataclasses
import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import AutoencoderConfig, AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNetConfig
from ivid2vid_jax.weights import components, files
from ivid2vid_jax.weights.inflate import abstract_params

log = logging.getLogger(__name__)

CONFIGS = {"unet": UNetConfig, "vae": AutoencoderConfig, "text_encoder": CLIPTextConfig}
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclasses.dataclass
class Folder:
    """What a pipeline folder holds, parameters apart.

    scheduler: the content of scheduler_config.json. sampling: the content of sampling.json, {} where there is none.
    """

    path: Path
    unet: UNetConfig
    vae: AutoencoderConfig
    text_encoder: CLIPTextConfig
    scheduler: dict
    sampling: dict

    def fingerprint(self, parts: tuple[str, ...] = ("unet", "vae", "text_encoder")) -> dict[str, str]:
        """sha256 of each weight file of the parts."""
        marks = {}
        for name in parts:
            for file in files.find(self.path / name, components.STEMS[name]):
                digest = hashlib.sha256()
                with open(file, "rb") as f:
                    while block := f.read(1 << 24):
                        digest.update(block)
                marks[f"{name}/{file.name}"] = digest.hexdigest()
        return marks


def open_folder(path: str | os.PathLike) -> Folder:
    """Reads the configs of a pipeline folder. Components that are no models here (safety_checker, ...) are skipped by name.

    Raises UserError that names the part that is missing or not understood.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder")
    if not (path / "model_index.json").is_file():
        raise UserError(f"{path}: has no model_index.json, so it is not a pipeline folder; give the folder above unet/ and vae/")
    index = files.read_json(path / "model_index.json")
    for name, value in index.items():
        if not name.startswith("_") and name not in PARTS and isinstance(value, list) and value[0]:
            log.info("%s: %s is not needed and left unread", path.name, name)
    configs = {}
    for name, cls in CONFIGS.items():
        file = path / name / "config.json"
        try:
            configs[name] = cls.from_json(files.read_json(file))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise error if isinstance(error, UserError) else UserError(f"{file}: {error}") from error
    unet, text = configs["unet"], configs["text_encoder"]
    if unet.cross_attention_dim != text.hidden_size:
        raise UserError(f"{path}: the U-Net wants text of width {unet.cross_attention_dim}, the text encoder gives {text.hidden_size}")
    sampling = path / "sampling.json"
    scheduler = files.read_json(path / "scheduler" / "scheduler_config.json")
    return Folder(path, **configs, scheduler=scheduler, sampling=files.read_json(sampling) if sampling.is_file() else {})


def abstract(component: str, config: Any) -> Any:
    """The parameter tree of a component as jax.ShapeDtypeStruct leaves."""
    if component == "unet":
        return abstract_params(config)
    if component == "vae":
        side = config.downscale * 2
        init = lambda key: AutoencoderKL(config).init(key, jnp.zeros((1, side, side, config.in_channels)))  # noqa: E731
    else:
        init = lambda key: CLIPTextModel(config).init(key, jnp.zeros((1, 1), jnp.int32))  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def load_params(folder: Folder, dtype=None, shardings: dict | None = None, variant: str | None = None) -> dict[str, Any]:
    """The parameters of the three models: {"unet": tree, "vae": tree, "text_encoder": tree}; see `components.load`."""
    return {
        name: components.load(
            name, folder.path / name, abstract(name, getattr(folder, name)), dtype, (shardings or {}).get(name), variant
        )
        for name in CONFIGS
    }


def save_folder(
    path: str | os.PathLike, folder: Folder, params: dict[str, Any], dtype=None, variant: str | None = None, max_shard_bytes: int = 5 * 10**9, replace: bool = False
) -> None:
    """Writes a pipeline folder: aside first, then renamed, so that a folder is whole or absent.

    The tokenizer's files are copied from `folder.path`. Raises UserError where `path` exists already, unless `replace`.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError(f"{path}: exists already; give a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name in CONFIGS:
            components.save(name, aside / name, params[name], dtype, variant, max_shard_bytes)
            files.write_json(aside / name / "config.json", getattr(folder, name).to_json())
        shutil.copytree(folder.path / "tokenizer", aside / "tokenizer")
        (aside / "scheduler").mkdir()
        files.write_json(aside / "scheduler" / "scheduler_config.json", folder.scheduler)
        files.write_json(aside / "model_index.json", model_index(folder))
        if folder.sampling:
            files.write_json(aside / "sampling.json", folder.sampling)
        aside.chmod(0o755)
        if path.exists():
            path.rename(old := path.with_name(f"{aside.name}.old"))
            aside.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def model_index(folder: Folder) -> dict:
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
