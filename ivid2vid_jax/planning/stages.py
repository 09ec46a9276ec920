"""The U-Net layer by layer: each distinct layer is compiled once, at its own shapes and shardings, and counted as often as it occurs.

What is left out of the sum: joining skips, guidance, losses, the optimiser (counted by its bytes), and what the compiler gains across layers.
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
from ivid2vid_jax.training import params as names
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
ENDS = (nn.Conv, GroupNorm)  # where they stand by themselves: conv_in, conv_norm_out, conv_out
EFFORT = "exec_time_optimization_effort"  # the compiler's option: -1 to 1, 0 where nobody sets it


@dataclasses.dataclass
class LayerStage:
    """A layer, as often as it occurs. args: shapes and dtypes of what it is called with; trained: whether its weights have gradients."""

    module: nn.Module
    path: str  # of the first one
    args: tuple[jax.ShapeDtypeStruct, ...]
    trained: bool
    count: int = 0
    method: str = "__call__"

    @property
    def key(self) -> str:
        shapes = [(x.shape, str(x.dtype)) for x in self.args]
        return f"{type(self.module).__name__}.{self.method} {fields(self.module)} {shapes} {self.trained}"


@dataclasses.dataclass
class LayerCost:
    """Of one run on one chip. flops: operations, those of pallas kernels and their padding among them; moved: HBM bytes; sent: kind of collective ->
    bytes; kept: bytes that wait for the backward pass; temporary: bytes while it runs; seconds: of compiling.
    """

    flops: float
    moved: float
    sent: dict[str, int]
    kept: int
    temporary: int
    seconds: float


def fields(module: nn.Module) -> dict[str, Any]:
    return {
        f.name: str(getattr(module, f.name))
        for f in dataclasses.fields(module)
        if f.name not in ("parent", "name")
    }


def stages(
    config: UNetConfig,
    x,
    context,
    trained: tuple[str, ...] = (),
    attention_impl: str = "auto",
    dtype=jnp.bfloat16,
) -> list[LayerStage]:
    """The distinct layers of one evaluation. x: abstract latents [B, T, h, w, C]; context: abstract text [B, K, D]; trained: patterns of
    `optim.trainable`, none for sampling.
    """
    shapes = names.flatten({"unet": param_shapes("unet", config)})
    chosen = names.trainable(shapes, trained) if trained else set()
    found: dict[str, LayerStage] = {}
    seen = set()

    def record(call, args, kwargs, at):
        module = at.module
        whole = isinstance(module, LAYERS) or (len(module.path) == 1 and isinstance(module, ENDS))
        path = "/".join(module.path)
        if (
            at.method_name == "__call__" and whole and path not in seen
        ):  # a subclass's call calls its parent's
            seen.add(path)
            learns = any(name.startswith(f"unet/{path}/") for name in chosen)
            stage = LayerStage(
                module.clone(parent=None, name=None),
                path,
                tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args),
                learns,
            )
            found.setdefault(stage.key, stage).count += 1
        return call(*args, **kwargs)

    net = InflatedUNet3D(config, attention_impl, dtype=dtype)
    with nn.intercept_methods(record):
        jax.eval_shape(
            net.init, jax.random.key(0), x, jax.ShapeDtypeStruct(x.shape[:1], jnp.int32), context
        )
    return list(found.values())


def compile_stage(
    stage: LayerStage, mesh: Mesh, remat: str | None, effort: float = 0.0
) -> LayerCost:
    """remat: what the layer keeps for its backward pass, see models/remat.py; None for the forward pass alone. effort: the compiler's."""
    master = jnp.float32 if remat and stage.trained else jnp.bfloat16
    shapes = jax.eval_shape(
        partial(stage.module.init, method=stage.method), jax.random.key(0), *stage.args
    )["params"]
    params = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, master, sharding=where),
        shapes,
        sharding.tree_shardings(shapes, mesh),
    )
    args = tuple(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x, mesh)) for x in stage.args
    )

    def forward(params, *args):
        return stage.module.apply({"params": params}, *args, method=stage.method)

    if remat:
        forward = forward if remat == "none" else jax.checkpoint(forward, policy=POLICIES[remat])

    def both(params, gradient, *args):
        inputs = (params, *args) if stage.trained else args
        out, pull = jax.vjp(forward if stage.trained else partial(forward, params), *inputs)
        return out, pull(gradient)

    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        out = jax.eval_shape(forward, params, *args)
        where_out = jax.tree.map(lambda x: place(x, mesh), out)
        if remat is None:
            cost = measure(forward, (params, *args), where_out, mesh, effort)
        else:
            gradient = jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=where_out)
            where_in = jax.tree.map(
                lambda x: x.sharding, (params, *args) if stage.trained else args
            )
            cost = measure(both, (params, gradient, *args), (where_out, where_in), mesh, effort)
            cost.kept = residuals(forward, params, args, mesh.size)
    cost.seconds = time.perf_counter() - begin
    return cost


def measure(function: Callable, args: tuple, where_out, mesh: Mesh, effort: float) -> LayerCost:
    """Compiles for the mesh's devices."""
    traced = runtime.jit(function, mesh.devices.flat[0], out_shardings=where_out).trace(*args)
    compiled = traced.lower().compile(compiler_options={EFFORT: effort})
    (operations, again), text = flops.program_flops(traced, compiled, mesh.size), compiled.as_text()
    return LayerCost(
        operations,
        hlo.moved(text) + again,
        dict(hlo.sent(text, mesh.size)),
        0,
        compiled.memory_analysis().temp_size_in_bytes,
        0.0,
    )


def place(x, mesh: Mesh) -> NamedSharding:
    """Clips by data and fsdp where they can be split, frames of [B, T, H, W, C] by frames, images [N, H, W, C] by all three."""
    clips = ("data", "fsdp", "frames") if x.ndim == 4 else ("data", "fsdp")
    ways = math.prod(mesh.shape[axis] for axis in clips)
    frames = "frames" if x.ndim == 5 and x.shape[1] % mesh.shape["frames"] == 0 else None
    return NamedSharding(
        mesh, P(clips if x.shape[0] % ways == 0 else None, frames) if x.ndim > 1 else P()
    )


def residuals(forward: Callable, params, args: tuple, chips: int) -> int:
    """Bytes a chip keeps between forward and backward, weights apart: activations are split over all chips, as the input is."""
    pull = jax.eval_shape(lambda *inputs: jax.vjp(forward, *inputs)[1], params, *args)
    weights = {x.shape for x in jax.tree.leaves(params)}
    return (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull) if x.shape not in weights)
        // chips
    )
