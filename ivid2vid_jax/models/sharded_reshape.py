"""Where a clip [B, T, H, W, C] lies on a mesh of devices (jax.set_mesh): clips over `data` and `fsdp`, frames over `frames`.

Spatial layers fold B and T into rows, each device its own, so they stay local; the temporal ones see every frame of some positions. Without a mesh,
or with one device, all of this is plain reshaping.
"""

import math
from collections.abc import Callable

import jax
from einops import rearrange
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

CLIPS, FRAMES = ("data", "fsdp"), "frames"


def auto_mesh_axes() -> dict[str, int]:
    """Name -> size of the mesh's axes, without those that a shard_map around this has taken: each device works on its own part of these."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }


def single_device() -> bool:
    """Whether there is one device only, so that no axis is split and axes may be merged at will."""
    return math.prod(auto_mesh_axes().values()) <= 1


def split_axes(x) -> tuple[tuple[str, ...], str | None]:
    """The mesh's axes over which B is split, and the one over which T is: those that divide them."""
    shape = auto_mesh_axes()
    clips = tuple(name for name in CLIPS if shape.get(name, 1) > 1)
    clips = clips if x.shape[0] % math.prod(shape[name] for name in clips) == 0 else ()
    return clips, FRAMES if shape.get(FRAMES, 1) > 1 and x.shape[1] % shape[FRAMES] == 0 else None


def fold_time(x) -> tuple[jax.Array, Callable]:
    """[B, T, ...] as rows [B*T, ...], and the function that turns rows back into [B, T, ...].

    On a mesh the order of the rows is the devices': nothing is sent, and no layer that works row by row can tell.
    """
    clips, frames = split_axes(x)
    return to_rows(
        x,
        lambda x: x.reshape(-1, *x.shape[2:]),
        lambda y, B, T, *_: y.reshape(B, T, *y.shape[1:]),
        P(clips or None, frames),
        bool(frames),
    )


def fold_positions(x) -> tuple[jax.Array, Callable]:
    """[B, T, H, W, C], split as `over_positions` does, as rows [B*H*W, T, C], and the way back, as in `fold`."""
    clips, axis = position_axis(x)

    def back(y, B, T, H, W, C):
        return rearrange(y, "(B H W) T C -> B T H W C", B=B, H=H, W=W)

    return to_rows(
        x,
        lambda x: rearrange(x, "B T H W C -> (B H W) T C"),
        back,
        position_spec(clips, axis),
        axis is not None,
    )


def fold_positions_time_major(x) -> tuple[jax.Array, Callable]:
    """As `fold_positions`, with time in front: [T, B*H*W, C]."""
    clips, axis = position_axis(x)

    def back(y, B, T, H, W, C):
        return rearrange(y, "T (B H W) C -> B T H W C", B=B, H=H, W=W)

    return to_rows(
        x,
        lambda x: rearrange(x, "B T H W C -> T (B H W) C"),
        back,
        position_spec(clips, axis),
        axis is not None,
        before=(None,),
    )


def to_rows(
    x, there: Callable, back: Callable, where: P, apart: bool, before: tuple = ()
) -> tuple[jax.Array, Callable]:
    """there(x), and `back` with x's shape; each device's own part where they are apart. before: axes of there(x) in front of the rows."""
    if not apart:
        return there(x), lambda y: back(y, *x.shape)
    mesh = jax.sharding.get_abstract_mesh()
    names = [
        name for part in where if part for name in (part if isinstance(part, tuple) else (part,))
    ]
    shape, split_rows = NamedSharding(mesh, where).shard_shape(x.shape), P(*before, tuple(names))

    def local(function, old, new):
        return jax.shard_map(function, mesh=mesh, in_specs=old, out_specs=new, check_vma=False)

    return local(there, where, split_rows)(x), local(lambda y: back(y, *shape), split_rows, where)


def position_axis(x) -> tuple[tuple[str, ...], int | None]:
    """The axes over which B is split, and which of x's axes 2 and 3 is split over `frames` while a temporal layer works; None for neither."""
    clips, frames = split_axes(x)
    size = auto_mesh_axes().get(FRAMES, 1)
    return clips, next((axis for axis in (2, 3) if frames and x.shape[axis] % size == 0), None)


def position_spec(clips: tuple[str, ...], axis: int | None) -> P:
    return P(clips or None, *((None,) * (axis - 1) + (FRAMES,) if axis else ()))


def shard_over_positions(x):
    """The same array, on a mesh split over rows (or columns) of pixels in the place of frames, for a temporal layer to work on."""
    clips, axis = position_axis(x)
    return x if axis is None else jax.lax.with_sharding_constraint(x, position_spec(clips, axis))


def shard_over_frames(x):
    """The same array, on a mesh split over frames again; sent here, once, and nowhere before."""
    clips, frames = split_axes(x)
    return (
        jax.lax.with_sharding_constraint(shard_over_positions(x), P(clips or None, frames))
        if frames
        else x
    )
