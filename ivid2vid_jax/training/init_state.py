"""The networks that a run trains and their initial weights, split into trained and frozen ones.

The weights come from `--model` (a Stable Diffusion, InstructPix2Pix or own pipeline folder, or a
RUN), else from a random initialisation. A run that has checkpoints then restores the trained
weights from them (`training/train_setup.py`).
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

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import CLIPTextConfig, UNetConfig
from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.parallel import runtime, sharding
from ivid2vid_jax.training import params as names
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.utils import storage
from ivid2vid_jax.weights import components, hub
from ivid2vid_jax.weights.inflate import inflate_params
from ivid2vid_jax.weights.pipeline_folder import (
    ClipFolder,
    PipelineFolder,
    open_clip_folder,
    open_pipeline_folder,
    param_initializer,
    param_shapes,
    replace_vae,
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

# The components that a task gives gradients to.
TRAINED_COMPONENTS = {
    "edit": ("unet", "text_encoder"),
    "text_to_image": ("unet", "text_encoder"),
    "autoencoder": ("vae",),
    "clip": ("clip",),
}

Folder = PipelineFolder | ClipFolder


@dataclasses.dataclass
class InitialWeights:
    """The weights before the first step.

    Attributes:
        origin: where the weights came from; compared when a run resumes.
        trained: name -> trained weights, float32.
        frozen: name -> frozen weights.
    """

    origin: dict[str, Any]
    trained: dict[str, jax.Array]
    frozen: dict[str, jax.Array]


def plan_networks(
    config: TrainConfig, texts: Callable[[], Iterable[str]], run: Path
) -> tuple[Folder, Folder | None]:
    """The configs of the networks to train, without reading weights.

    Args:
        config: the training config.
        texts: returns the texts that a run from scratch learns its vocabulary from.
        run: the RUN folder; the vocabulary is stored in RUN/tokenizer.

    Returns:
        The networks to train, and the folder with the initial weights (None: scratch), whose U-Net
        may have fewer channels and no temporal layers.
    """
    if config.model is None:
        learn_vocabulary(config, texts, run / "tokenizer")
        return (clip_from_scratch if config.task == "clip" else from_scratch)(config, run), None
    if config.task == "clip":
        clip_folder = open_clip_folder(hub.resolve_model(config.model))
        image_size = clip_folder.clip.vision.image_size
        if image_size != config.loader.size:
            raise UserError(
                f"--loader.size {config.loader.size}: {config.model} takes images of "
                f"{image_size} pixels"
            )
        return clip_folder, clip_folder
    source = open_pipeline_folder(hub.resolve_model(config.model))
    if config.vae:
        source = replace_vae(source, hub.resolve_model(config.vae))
    if config.net.reinit_temporal:
        if config.net.temporal is None:
            raise UserError(
                "--net.reinit-temporal: name the kinds of the new temporal layers, such as "
                "--net.temporal conv attention"
            )
        source = dataclasses.replace(
            source,
            unet=dataclasses.replace(source.unet, temporal=()),
            is_excluded=is_temporal_key,
        )
    target = target_unet(config, source.unet, source.vae.latent_channels)
    frames = target.num_frames if config.task == "edit" else config.loader.frames
    sampling = source.sampling | {"size": config.loader.size, "frames": frames}
    folder = dataclasses.replace(
        source, unet=target, sampling=sampling, is_excluded=None, vae_path=None
    )
    return folder, source


def target_unet(config: TrainConfig, unet: UNetConfig, latent_channels: int) -> UNetConfig:
    """The config of the task's U-Net: an editor has 2x the channels and temporal layers."""
    if config.task == "edit":
        temporal = unet.temporal if config.net.temporal is None else config.net.temporal
        # Training on images does not change the number of frames that a video editor can see.
        keeps_frames = config.loader.frames == 1 and unet.temporal and temporal
        try:
            return dataclasses.replace(
                unet,
                in_channels=2 * latent_channels,
                temporal=temporal,
                num_frames=unet.num_frames if keeps_frames else config.loader.frames,
            )
        except ValueError as error:
            raise UserError(
                f"--net.temporal {' '.join(temporal)} with --loader.frames "
                f"{config.loader.frames}: {error}"
            ) from error
    if config.task == "text_to_image" and (unet.in_channels != latent_channels or unet.temporal):
        raise UserError(
            f"--task text_to_image trains a 2D U-Net of {latent_channels} channels; this one has "
            f"{unet.in_channels} and temporal layers {unet.temporal}"
        )
    return unet


def learn_vocabulary(config: TrainConfig, texts: Callable[[], Iterable[str]], folder: Path) -> None:
    """Learns a tokenizer from the texts and writes it to `folder`, unless it is there already."""
    from ivid2vid_jax.training import train_tokenizer

    size = (config.net.clip.text if config.task == "clip" else config.net.text_encoder).vocab_size
    # Of several processes only the first one writes; of a run in a bucket each has its own copy.
    writes = jax.process_index() == 0 or storage.is_remote(config.output)
    if not (folder / "vocab.json").is_file() and writes:
        log.info("learning a vocabulary of at most %d tokens", size)
        train_tokenizer.train_tokenizer(texts(), size, folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")


def with_special_tokens(text: CLIPTextConfig, tokenizer: Path) -> CLIPTextConfig:
    """The text encoder's config with the tokenizer's start, end and padding tokens."""
    from ivid2vid_jax.weights.tokenizer import load_tokenizer

    tokens = load_tokenizer(tokenizer)
    return dataclasses.replace(
        text,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def from_scratch(config: TrainConfig, run: Path) -> PipelineFolder:
    """The pipeline of `config.net`, with the tokenizer in RUN/tokenizer."""
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
    """The CLIP model of `config.net`, with the tokenizer in RUN/tokenizer."""
    size, text = config.loader.size, with_special_tokens(config.net.clip.text, run / "tokenizer")
    clip = dataclasses.replace(
        config.net.clip,
        text=text,
        vision=dataclasses.replace(config.net.clip.vision, image_size=size),
    )
    preprocessor = DEFAULT_PREPROCESSOR | {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    return ClipFolder(run, clip, preprocessor, run / "tokenizer")


def load_initial_weights(
    config: TrainConfig, folder: Folder, source: Folder | None, mesh: Mesh
) -> InitialWeights:
    """Loads or initialises the weights, sharded over the mesh.

    Args:
        config: the training config.
        folder: the networks to train, from `plan_networks`.
        source: the folder with the initial weights, from `plan_networks`.
        mesh: the devices.
    """
    shapes = names.flatten({name: param_shapes(name, net) for name, net in folder.models.items()})
    trained_names = names.trainable(shapes, config.optim.trainable)
    check_trainable(config, trained_names)
    frozen_dtype = (
        compute_dtype_of(config)
        if config.optim.frozen_dtype == "auto"
        else runtime.compute_dtype(config.optim.frozen_dtype)
    )
    trained_dtype = jnp.promote_types(compute_dtype_of(config), jnp.float32)
    dtypes = {name: trained_dtype if name in trained_names else frozen_dtype for name in shapes}
    shardings = sharding.tree_shardings(shapes, mesh)
    origin: dict[str, Any]
    if source is None:
        weights = draw_weights(folder, dtypes, shardings, config.seed)
        origin = {"scratch_seed": config.seed}
    else:
        weights = load_weights(folder, source, dtypes, shardings, config.seed)
        origin = {"model": str(config.model), "files": source.fingerprint()}
    trained, frozen = (
        {name: weights[name] for name in sorted(weights) if (name in trained_names) == is_trained}
        for is_trained in (True, False)
    )
    return InitialWeights(origin, trained, frozen)


def check_trainable(config: TrainConfig, trained_names: set[str]) -> None:
    """Raises UserError for weights without gradient: weight decay alone would shrink them."""
    components = TRAINED_COMPONENTS[config.task]
    prefixes = tuple(f"{component}/" for component in components)
    stray = sorted(name for name in trained_names if not name.startswith(prefixes))
    if stray:
        advice = (
            f"give --optim.trainable {components[0]}"
            if config.task in ("autoencoder", "clip")
            else "train the autoencoder by itself, with --task autoencoder"
        )
        raise UserError(
            f"--optim.trainable {' '.join(config.optim.trainable)}: --task {config.task} does not "
            f"train {stray[0]} and {len(stray) - 1} more; {advice}"
        )


def compute_dtype_of(config: TrainConfig) -> Any:
    """The compute precision."""
    return runtime.compute_dtype(config.optim.dtype)


def draw_weights(folder: Folder, dtypes: dict, shardings: dict, seed: int) -> dict[str, jax.Array]:
    """Random weights of all networks, initialised one component after the other."""
    weights: dict[str, jax.Array] = {}
    for component, net in folder.models.items():
        for path, leaf in init_params(param_initializer(component, net), seed).items():
            name = "/".join((component, *path))
            weights[name] = sharding.put(leaf.astype(dtypes[name]), shardings[name])
    return weights


def load_weights(
    folder: Folder, source: Folder, dtypes: dict, shardings: dict, seed: int
) -> dict[str, jax.Array]:
    """The source folder's weights, with the U-Net inflated to that of `folder`.

    Host memory holds one leaf at a time.
    """
    dtype_trees, sharding_trees = names.unflatten(dtypes), names.unflatten(shardings)
    trees = {}
    for name, net in source.models.items():
        tree = components.load_component(
            name,
            source.component_dir(name),
            param_shapes(name, net),
            flax.traverse_util.flatten_dict(dtype_trees[name]),
            sharding_trees[name],
            skip=source.key_filter(name),
        )
        if name == "unet":
            assert isinstance(source, PipelineFolder) and isinstance(folder, PipelineFolder)
            tree = inflate_params(tree, source.unet, folder.unet, seed)
        trees[name] = tree

    def place(name: str, leaf: jax.Array) -> jax.Array:
        # New leaves are initialised by every process, with the same values.
        if leaf.is_fully_addressable and jax.process_count() > 1:
            leaf = sharding.put(np.asarray(leaf), shardings[name])
        return jax.device_put(leaf, shardings[name]).astype(dtypes[name])

    return {name: place(name, leaf) for name, leaf in names.flatten(trees).items()}
