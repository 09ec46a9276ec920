"""Reshapes of clips [B, T, H, W, C] that stay local on a mesh of devices (jax.set_mesh).

On a mesh, B is split over the axes `data` and `fsdp`, and T over `frames`. Spatial layers fold B
and T into rows; each device folds its own part, so nothing is sent. Temporal layers need all
frames of a position, so for them the clip is split over rows of pixels (H) or columns (W) instead
of frames. Without a mesh, or with one device, all of this is plain reshaping.
"""

import math
from collections.abc import Callable

import jax
from einops import rearrange
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH_AXES, FRAMES_AXIS = ("data", "fsdp"), "frames"


def auto_mesh_axes() -> dict[str, int]:
    """Name -> size of the mesh's axes that the compiler partitions.

    Excluded are the axes of an enclosing shard_map, where each device already computes its part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }


def single_device() -> bool:
    """Whether there is one device only, so that no axis is split and any axes may be merged."""
    return math.prod(auto_mesh_axes().values()) <= 1


def split_axes(x) -> tuple[tuple[str, ...], str | None]:
    """The mesh axes over which B and T of x are split: those whose sizes divide B and T."""
    mesh_shape = auto_mesh_axes()
    batch_axes = tuple(name for name in BATCH_AXES if mesh_shape.get(name, 1) > 1)
    if x.shape[0] % math.prod(mesh_shape[name] for name in batch_axes):
        batch_axes = ()
    frames = mesh_shape.get(FRAMES_AXIS, 1)
    frames_axis = FRAMES_AXIS if frames > 1 and x.shape[1] % frames == 0 else None
    return batch_axes, frames_axis


def fold_time(x) -> tuple[jax.Array, Callable]:
    """Folds a clip's frames into the batch.

    Returns rows [B*T, ...] of x [B, T, ...], and the function that unfolds rows to [B, T, ...]. On
    a mesh the rows are ordered by device. No layer that works row by row depends on the order.
    """
    batch_axes, frames_axis = split_axes(x)
    return fold_per_device(
        x,
        fold=lambda x: x.reshape(-1, *x.shape[2:]),
        unfold=lambda y, B, T, *_: y.reshape(B, T, *y.shape[1:]),
        spec=P(batch_axes or None, frames_axis),
        is_split=frames_axis is not None,
    )


def fold_positions(x) -> tuple[jax.Array, Callable]:
    """Folds a clip's positions into the batch, as `fold_time` does with frames.

    x: [B, T, H, W, C], split as by `shard_over_positions`. Returns rows [B*H*W, T, C] and the
    function that unfolds them.
    """
    batch_axes, axis = position_axis(x)
    return fold_per_device(
        x,
        fold=lambda x: rearrange(x, "B T H W C -> (B H W) T C"),
        unfold=lambda y, B, T, H, W, C: rearrange(y, "(B H W) T C -> B T H W C", B=B, H=H, W=W),
        spec=position_spec(batch_axes, axis),
        is_split=axis is not None,
    )


def fold_positions_time_major(x) -> tuple[jax.Array, Callable]:
    """Like `fold_positions`, with time first: [T, B*H*W, C]."""
    batch_axes, axis = position_axis(x)
    return fold_per_device(
        x,
        fold=lambda x: rearrange(x, "B T H W C -> T (B H W) C"),
        unfold=lambda y, B, T, H, W, C: rearrange(y, "T (B H W) C -> B T H W C", B=B, H=H, W=W),
        spec=position_spec(batch_axes, axis),
        is_split=axis is not None,
        axes_before_rows=1,
    )


def fold_per_device(
    x, fold: Callable, unfold: Callable, spec: P, is_split: bool, axes_before_rows: int = 0
) -> tuple[jax.Array, Callable]:
    """Applies `fold` to x, on each device's part of x if it is split.

    Args:
        x: the clip.
        fold: x -> rows.
        unfold: (rows, *shape of x) -> the clip.
        spec: how x is split over the mesh.
        is_split: whether an axis other than the batch is split.
        axes_before_rows: axes of the folded array before the axis of rows.

    Returns:
        The rows, and the function that unfolds an array of rows.
    """
    if not is_split:
        return fold(x), lambda y: unfold(y, *x.shape)
    mesh = jax.sharding.get_abstract_mesh()
    parts = [axes if isinstance(axes, tuple) else (axes,) for axes in spec if axes]
    rows_spec = P(*(None,) * axes_before_rows, tuple(name for part in parts for name in part))
    local_shape = NamedSharding(mesh, spec).shard_shape(x.shape)

    def per_device(function, in_specs, out_specs):
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

    rows = per_device(fold, spec, rows_spec)(x)
    return rows, per_device(lambda y: unfold(y, *local_shape), rows_spec, spec)


def position_axis(x) -> tuple[tuple[str, ...], int | None]:
    """How x [B, T, H, W, C] is split while a temporal layer works on it.

    Returns the mesh axes over which B is split, and the axis of x (2 for H, 3 for W) that is split
    over `frames`; None for neither.
    """
    batch_axes, frames_axis = split_axes(x)
    size = auto_mesh_axes().get(FRAMES_AXIS, 1)
    candidates = (2, 3) if frames_axis else ()
    return batch_axes, next((axis for axis in candidates if x.shape[axis] % size == 0), None)


def position_spec(batch_axes: tuple[str, ...], axis: int | None) -> P:
    """The PartitionSpec of a clip split over the batch and, along `axis`, over `frames`."""
    between = (None,) * (axis - 1) if axis else ()
    return P(batch_axes or None, *between, *((FRAMES_AXIS,) if axis else ()))


def shard_over_data(x):
    """Splits small values per clip, x [B, E], over `data` only, for a layer with split weights.

    Left to itself, the compiler sends them between slices to compute the gradient of the weights.
    """
    size = auto_mesh_axes().get("data", 1)
    if size == 1 or x.shape[0] % size:
        return x
    return jax.lax.with_sharding_constraint(x, P("data"))


def shard_over_positions(x):
    """Splits x [B, T, H, W, C] over H (or W) instead of frames, for a temporal layer."""
    batch_axes, axis = position_axis(x)
    if axis is None:
        return x
    return jax.lax.with_sharding_constraint(x, position_spec(batch_axes, axis))


def shard_over_frames(x):
    """Splits x over frames again, after a temporal layer.

    The first constraint keeps x split over positions up to here, so that it is sent once.
    """
    batch_axes, frames_axis = split_axes(x)
    if frames_axis is None:
        return x
    spec = P(batch_axes or None, frames_axis)
    return jax.lax.with_sharding_constraint(shard_over_positions(x), spec)
