"""The U-Net layer by layer: compiles each distinct layer once, with its own shapes and shardings.

The sum over the layers leaves out: concatenation of skips, guidance, losses, the optimiser (added
from its size in bytes), and what the compiler optimises across layers.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.layers import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    TimestepMLP,
    Upsample,
)
from ivid2vid_jax.models.remat import POLICIES
from ivid2vid_jax.models.temporal import TemporalConvLayer, TemporalTransformer
from ivid2vid_jax.models.transformer import SpatialTransformer
from ivid2vid_jax.parallel import runtime, sharding
from ivid2vid_jax.planning import hlo
from ivid2vid_jax.training import flops
from ivid2vid_jax.training import params as param_names
from ivid2vid_jax.weights.pipeline_folder import param_shapes

LAYERS = (
    ResnetBlock,
    SpatialTransformer,
    TemporalConvLayer,
    TemporalTransformer,
    Downsample,
    Upsample,
    TimestepMLP,
)
TOP_LEVEL_LAYERS = (nn.Conv, GroupNorm)  # conv_in, conv_norm_out, conv_out
# XLA's levels (CompilerEffortLevel) below and above the default, O1 and O3
LOW_LEVEL, HIGH_LEVEL = 19, 39


@dataclasses.dataclass
class LayerStage:
    """A distinct layer and how often it occurs."""

    module: nn.Module
    path: str  # of its first occurrence, "down_blocks.0/resnets.0"
    args: tuple[jax.ShapeDtypeStruct, ...]  # shapes and dtypes of its inputs
    trained: bool  # whether its weights have gradients
    count: int = 0
    method: str = "__call__"

    @property
    def key(self) -> str:
        """Equal for layers that compile to the same program."""
        shapes = [(x.shape, str(x.dtype)) for x in self.args]
        name = f"{type(self.module).__name__}.{self.method}"
        return f"{name} {hyperparameters(self.module)} {shapes} {self.trained}"


@dataclasses.dataclass
class LayerCost:
    """Cost of running a layer once, on one chip."""

    flops: float  # operations, including those of Pallas kernels and their padding
    hbm_bytes: float  # bytes read from and written to HBM
    sent: dict[str, int]  # kind of collective -> bytes sent
    residual_bytes: int  # bytes kept for the backward pass
    temporary_bytes: int  # bytes of temporary buffers while it runs
    seconds: float  # compile time


def hyperparameters(module: nn.Module) -> dict[str, str]:
    """The fields of a Flax module."""
    return {
        field.name: str(getattr(module, field.name))
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name")
    }


def find_stages(
    config: UNetConfig,
    x: jax.ShapeDtypeStruct,
    context: jax.ShapeDtypeStruct,
    trained: tuple[str, ...] = (),
    attention_impl: str = "auto",
    dtype: Any = jnp.bfloat16,
) -> list[LayerStage]:
    """Returns the distinct layers of one evaluation of the U-Net.

    Args:
        config: of the U-Net.
        x: abstract latents [B, T, h, w, C].
        context: abstract text embeddings [B, K, D].
        trained: patterns of trained weights (`optim.trainable`); none for sampling.
        attention_impl: attention backend, see models/attention.py.
        dtype: of the computation.
    """
    shapes = param_names.flatten({"unet": param_shapes("unet", config)})
    trained_names = param_names.trainable(shapes, trained) if trained else set()
    stages: dict[str, LayerStage] = {}
    visited = set()

    def record(call: Callable, args: tuple, kwargs: dict, method: Any) -> Any:
        module, path = method.module, "/".join(method.module.path)
        is_layer = isinstance(module, LAYERS) or (
            len(module.path) == 1 and isinstance(module, TOP_LEVEL_LAYERS)
        )
        # a subclass may call its parent's __call__, with the same path
        if method.method_name == "__call__" and is_layer and path not in visited:
            visited.add(path)
            stage = LayerStage(
                module.clone(parent=None, name=None),
                path,
                tuple(jax.ShapeDtypeStruct(arg.shape, arg.dtype) for arg in args),
                any(name.startswith(f"unet/{path}/") for name in trained_names),
            )
            stages.setdefault(stage.key, stage).count += 1
        return call(*args, **kwargs)

    net = InflatedUNet3D(config, attention_impl, dtype=dtype)
    timesteps = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    with nn.intercept_methods(record):
        jax.eval_shape(net.init, jax.random.key(0), x, timesteps, context)
    return list(stages.values())


def compile_stage(
    stage: LayerStage, mesh: Mesh, remat: str | None, effort: float = 0.0
) -> LayerCost:
    """Compiles a layer for the devices of a mesh.

    Args:
        stage: the layer.
        mesh: devices and axes.
        remat: what the layer keeps for its backward pass, see models/remat.py; None compiles the
            forward pass alone.
        effort: of the compiler, see `effort_options`.
    """
    params = abstract_params(stage, mesh, jnp.float32 if remat and stage.trained else jnp.bfloat16)
    args = tuple(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=activation_sharding(x, mesh))
        for x in stage.args
    )

    def forward(params: Any, *args: Any) -> Any:
        return stage.module.apply({"params": params}, *args, method=stage.method)

    start = time.perf_counter()
    with jax.set_mesh(mesh):
        if remat is None:
            cost = compile_forward(forward, params, args, mesh, effort)
        else:
            if remat != "none":
                forward = jax.checkpoint(forward, policy=POLICIES[remat])
            cost = compile_with_backward(forward, params, args, stage.trained, mesh, effort)
    cost.seconds = time.perf_counter() - start
    return cost


def abstract_params(stage: LayerStage, mesh: Mesh, dtype: Any) -> Any:
    """The parameters of a layer as abstract arrays, sharded as in training."""
    init = partial(stage.module.init, method=stage.method)
    shapes = jax.eval_shape(init, jax.random.key(0), *stage.args)["params"]
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, dtype, sharding=where),
        shapes,
        sharding.tree_shardings(shapes, mesh),
    )


def compile_forward(
    forward: Callable, params: Any, args: tuple, mesh: Mesh, effort: float
) -> LayerCost:
    """Cost of the forward pass alone."""
    out = jax.eval_shape(forward, params, *args)
    out_shardings = jax.tree.map(lambda x: activation_sharding(x, mesh), out)
    return measure(forward, (params, *args), out_shardings, mesh, effort)


def compile_with_backward(
    forward: Callable, params: Any, args: tuple, trained: bool, mesh: Mesh, effort: float
) -> LayerCost:
    """Cost of the forward and the backward pass.

    Gradients are those of the inputs, and of the parameters if they are trained.
    """
    differentiated = (params, *args) if trained else args

    def forward_and_backward(params: Any, gradient: Any, *args: Any) -> tuple:
        inputs = (params, *args) if trained else args
        out, vjp = jax.vjp(forward if trained else partial(forward, params), *inputs)
        return out, vjp(gradient)

    out = jax.eval_shape(forward, params, *args)
    out_sharding = jax.tree.map(lambda x: activation_sharding(x, mesh), out)
    gradient_shardings = jax.tree.map(lambda x: x.sharding, differentiated)
    gradient = jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=out_sharding)
    cost = measure(
        forward_and_backward,
        (params, gradient, *args),
        (out_sharding, gradient_shardings),
        mesh,
        effort,
    )
    cost.residual_bytes = residual_bytes(forward, params, args, mesh.size)
    return cost


def effort_options(effort: float) -> dict[str, float]:
    """Compiler options: how hard it optimises, -1 to 1. Training and editing leave it at 0.

    Newer releases of JAX (0.12) have levels instead; these are the nearest.
    """
    if hasattr(jax.config, "jax_exec_time_optimization_effort"):
        return {"exec_time_optimization_effort": effort}
    return {"optimization_level": LOW_LEVEL if effort < 0 else HIGH_LEVEL} if effort else {}


def measure(
    function: Callable, args: tuple, out_shardings: Any, mesh: Mesh, effort: float
) -> LayerCost:
    """Compiles a function for the devices of a mesh and reads its cost."""
    traced = runtime.jit(function, mesh.devices.flat[0], out_shardings=out_shardings).trace(*args)
    compiled = traced.lower().compile(compiler_options=effort_options(effort))
    operations, refetched = flops.program_flops(traced, compiled, mesh.size)
    text = compiled.as_text()
    return LayerCost(
        flops=operations,
        hbm_bytes=hlo.hbm_bytes(text) + refetched,
        sent=dict(hlo.sent_bytes(text, mesh.size)),
        residual_bytes=0,
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        seconds=0.0,
    )


def activation_sharding(x: jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
    """Sharding of an activation.

    The batch axis is split over data and fsdp if it is divisible, the frames of [B, T, H, W, C]
    over frames. The batch axis of images [N, H, W, C] is split over all three.
    """
    batch_axes = ("data", "fsdp", "frames") if x.ndim == 4 else ("data", "fsdp")
    parts = math.prod(mesh.shape[axis] for axis in batch_axes)
    frames = "frames" if x.ndim == 5 and x.shape[1] % mesh.shape["frames"] == 0 else None
    if x.ndim <= 1:
        return NamedSharding(mesh, P())
    return NamedSharding(mesh, P(batch_axes if x.shape[0] % parts == 0 else None, frames))


def residual_bytes(forward: Callable, params: Any, args: tuple, chips: int) -> int:
    """Bytes per chip kept between the forward and the backward pass, without weights.

    Activations are split over all chips, as the input is.
    """
    vjp = jax.eval_shape(lambda *inputs: jax.vjp(forward, *inputs)[1], params, *args)
    weights = {x.shape for x in jax.tree.leaves(params)}
    activations = [x for x in jax.tree.leaves(vjp) if x.shape not in weights]
    return sum(x.size * x.dtype.itemsize for x in activations) // chips
