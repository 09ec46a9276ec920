"""Where a run starts: the nets it trains and their weights, split into trained and frozen ones, each born on its devices.

Own checkpoints come before this (`training/loop.py`); then `--model` (a Stable Diffusion or InstructPix2Pix folder, ours, a RUN), then scratch.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ivid2vid_jax.models import CLIPTextConfig, UNetConfig
from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.parallel import runtime, sharding
from ivid2vid_jax.training import params as names
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.utils import storage
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights import components, hub
from ivid2vid_jax.weights.inflate import inflate_params
from ivid2vid_jax.weights.pipeline_folder import (
    ClipFolder,
    PipelineFolder,
    open_clip_folder,
    open_pipeline_folder,
    param_initializer,
    param_shapes,
)
from ivid2vid_jax.weights.random_init import init_params

log = logging.getLogger(__name__)

DEFAULT_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}
DEFAULT_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
TRAINED_COMPONENTS = {
    "autoencoder": ("vae",),
    "clip": ("clip",),
}  # the components that a task trains; else the U-Net and the text encoder


@dataclasses.dataclass
class InitialWeights:
    """folder: the nets as they are trained. origin: where the weights came from, enough to know them again. trained (float32) and
    frozen: parameters by name.
    """

    folder: PipelineFolder | ClipFolder
    origin: dict[str, Any]
    trained: dict[str, jax.Array]
    frozen: dict[str, jax.Array]


def plan_networks(
    config: TrainConfig, texts: Callable[[], Iterable[str]], run: Path
) -> tuple[PipelineFolder | ClipFolder, PipelineFolder | ClipFolder | None]:
    """The nets that will be trained, and the folder whose weights they start from (None: scratch). No weight is read.

    texts: called where a vocabulary is to be learned, which is kept in RUN/tokenizer.
    """
    if config.model is None:
        learn_vocabulary(config, texts, run / "tokenizer")
        return (clip_from_scratch if config.task == "clip" else from_scratch)(config, run), None
    if config.task == "clip":
        source = open_clip_folder(hub.resolve_model(config.model))
        if source.clip.vision.image_size != config.loader.size:
            raise UserError(
                f"--loader.size {config.loader.size}: {config.model} takes images of {source.clip.vision.image_size} pixels"
            )
        return source, source
    source = open_pipeline_folder(hub.resolve_model(config.model))
    if config.net.reinit_temporal:
        if config.net.temporal is None:
            raise UserError(
                "--net.reinit-temporal: say which temporal layers begin anew, such as --net.temporal conv attention"
            )
        source = dataclasses.replace(
            source, unet=dataclasses.replace(source.unet, temporal=()), left_out=is_temporal_key
        )
    target = target_unet(config, source.unet, source.vae.latent_channels)
    frames = target.num_frames if config.task == "edit" else config.loader.frames
    sampling = source.sampling | {"size": config.loader.size, "frames": frames}
    return dataclasses.replace(source, unet=target, sampling=sampling, left_out=None), source


def target_unet(config: TrainConfig, unet: UNetConfig, latent_channels: int) -> UNetConfig:
    """The U-Net of the task: an editor sees the source clip's channels too and has the temporal layers that were asked for."""
    if config.task == "edit":
        temporal = unet.temporal if config.net.temporal is None else config.net.temporal
        still = (
            config.loader.frames == 1 and unet.temporal and temporal
        )  # images say nothing about how many frames the net can see
        try:
            return dataclasses.replace(
                unet,
                in_channels=2 * latent_channels,
                temporal=temporal,
                num_frames=unet.num_frames if still else config.loader.frames,
            )
        except ValueError as error:
            raise UserError(
                f"--net.temporal {' '.join(temporal)} with --loader.frames {config.loader.frames}: {error}"
            ) from error
    if config.task == "text_to_image" and (unet.in_channels != latent_channels or unet.temporal):
        raise UserError(
            f"--task text_to_image trains a 2D U-Net of {latent_channels} channels; this one has {unet.in_channels} and temporal layers {unet.temporal}"
        )
    return unet


def learn_vocabulary(config: TrainConfig, texts: Callable[[], Iterable[str]], home: Path) -> None:
    """Writes a tokenizer learned from the texts, where the run has none yet."""
    from ivid2vid_jax.training import train_tokenizer

    size = (config.net.clip.text if config.task == "clip" else config.net.text_encoder).vocab_size
    if not (home / "vocab.json").is_file() and (
        jax.process_index() == 0 or storage.is_remote(config.output)
    ):  # whose copy each process has for itself
        log.info("learning a vocabulary of at most %d tokens", size)
        train_tokenizer.train_tokenizer(texts(), size, home)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")


def with_special_tokens(text: CLIPTextConfig, tokenizer: Path) -> CLIPTextConfig:
    """The text tower with the tokenizer's begin, end and padding tokens."""
    from ivid2vid_jax.inference.pipeline import load_tokenizer

    words = load_tokenizer(tokenizer)
    return dataclasses.replace(
        text,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def from_scratch(config: TrainConfig, run: Path) -> PipelineFolder:
    net = config.net
    text = with_special_tokens(net.text_encoder, run / "tokenizer")
    scheduler = DEFAULT_SCHEDULER | {
        "prediction_type": net.prediction_type,
        "rescale_betas_zero_snr": net.zero_terminal_snr,
    }
    unet = dataclasses.replace(
        net.unet,
        in_channels=net.vae.latent_channels,
        cross_attention_dim=text.hidden_size,
        temporal=(),
    )
    sampling = {
        "size": config.loader.size,
        "frames": config.loader.frames,
        "steps": config.log.sample_steps,
    }
    return PipelineFolder(
        run, target_unet(config, unet, net.vae.latent_channels), net.vae, text, scheduler, sampling
    )


def clip_from_scratch(config: TrainConfig, run: Path) -> ClipFolder:
    size, text = config.loader.size, with_special_tokens(config.net.clip.text, run / "tokenizer")
    clip = dataclasses.replace(
        config.net.clip,
        text=text,
        vision=dataclasses.replace(config.net.clip.vision, image_size=size),
    )
    return ClipFolder(
        run,
        clip,
        DEFAULT_PREPROCESSOR
        | {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}},
        run / "tokenizer",
    )


def load_initial_weights(
    config: TrainConfig, folder: PipelineFolder, source: PipelineFolder | None, mesh: Mesh
) -> InitialWeights:
    """Loads or draws the weights. folder, source: of `plan`."""
    shapes = names.flatten({name: param_shapes(name, net) for name, net in folder.models.items()})
    chosen = names.trainable(shapes, config.optim.trainable)
    check_trainable(config, chosen)
    frozen_type = (
        compute_dtype_of(config)
        if config.optim.frozen_dtype == "auto"
        else runtime.compute_dtype(config.optim.frozen_dtype)
    )
    master = jnp.promote_types(compute_dtype_of(config), jnp.float32)
    dtypes = {name: master if name in chosen else frozen_type for name in shapes}
    placed = sharding.tree_shardings(shapes, mesh)
    weights = (
        draw_weights(folder, dtypes, placed, config.seed)
        if source is None
        else load_weights(folder, source, dtypes, placed, config.seed)
    )
    origin = (
        {"scratch_seed": config.seed}
        if source is None
        else {"model": str(config.model), "files": source.fingerprint()}
    )
    trained, frozen = (
        {name: weights[name] for name in sorted(weights) if (name in chosen) == which}
        for which in (True, False)
    )
    return InitialWeights(folder, origin, trained, frozen)


def check_trainable(config: TrainConfig, chosen: set[str]) -> None:
    """UserError for weights that the task gives no gradient: weight decay alone would wear them away."""
    learns = TRAINED_COMPONENTS.get(config.task, ("unet", "text_encoder"))
    stray = sorted(
        name
        for name in chosen
        if not name.startswith(tuple(f"{component}/" for component in learns))
    )
    if stray:
        way = (
            f"give --optim.trainable {learns[0]}"
            if config.task in TRAINED_COMPONENTS
            else "train the autoencoder by itself, with --task autoencoder"
        )
        raise UserError(
            f"--optim.trainable {' '.join(config.optim.trainable)}: --task {config.task} does not train {stray[0]} and {len(stray) - 1} more; {way}"
        )


def compute_dtype_of(config: TrainConfig):
    """The arithmetic's type."""
    return runtime.compute_dtype(config.optim.dtype)


def draw_weights(
    folder: PipelineFolder, dtypes: dict, placed: dict, seed: int
) -> dict[str, jax.Array]:
    """All weights of the nets, drawn afresh, one after the other."""
    out = {}
    for component, net in folder.models.items():
        for path, leaf in init_params(param_initializer(component, net), seed).items():
            name = "/".join((component, *path))
            leaf = leaf.astype(dtypes[name])
            out[name] = jax.make_array_from_callback(
                leaf.shape, placed[name], lambda part, leaf=leaf: leaf[part]
            )
    return out


def load_weights(
    folder: PipelineFolder, source: PipelineFolder, dtypes: dict, placed: dict, seed: int
) -> dict[str, jax.Array]:
    """The source folder's weights; the U-Net inflated to what is trained. Host memory holds one leaf at a time."""
    types, places, out = names.unflatten(dtypes), names.unflatten(placed), {}
    for name, net in source.models.items():
        stored = flax.traverse_util.flatten_dict(types[name])
        weights = components.load_component(
            name,
            source.component_dir(name),
            param_shapes(name, net),
            stored,
            places[name],
            skip=source.skip(name),
        )
        out[name] = (
            inflate_params(weights, source.unet, folder.unet, seed) if name == "unet" else weights
        )

    def place(name, leaf):
        fresh = (
            leaf.is_fully_addressable and jax.process_count() > 1
        )  # drawn by every process for itself, the same everywhere
        return jax.device_put(np.asarray(leaf) if fresh else leaf, placed[name]).astype(
            dtypes[name]
        )

    return {name: place(name, leaf) for name, leaf in names.flatten(out).items()}
