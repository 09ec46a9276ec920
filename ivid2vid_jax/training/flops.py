"""Counts the floating-point operations of a traced function: matrix products and convolutions.

A multiply-add counts as two operations. The TPU compiler's own count (`cost_analysis`) omits pallas
kernels, here splash attention, and counts a loop's body once; this module adds both. Zero padding
around a convolution's input counts; zeros that dilation inserts between its elements do not.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

LANES = 128  # the kernel pads head dimensions to a multiple of this
# Matrix products in each of splash attention's three kernels, of 2 * Q * K * D operations per head.
# Products that the backward kernels recompute are included.
SPLASH = {"fwd": 2, "dkv": 4, "dq": 3}


@dataclasses.dataclass(frozen=True)
class Count:
    """Operation counts of a function.

    Attributes:
        dot: of matrix products.
        conv: of convolutions.
        splash: of splash attention.
        padding: of the padding of splash attention's head dimensions.
        repeated: the part of `dot` and `conv` in loop iterations after the first.
        fetched: bytes that splash attention's kernels read from HBM again: all keys and values for
            each block of queries after the first, or in dkv the queries for each block of keys.
    """

    dot: int = 0
    conv: int = 0
    splash: int = 0
    padding: int = 0
    repeated: int = 0
    fetched: int = 0

    @property
    def useful(self) -> int:
        """All operations without padding."""
        return self.dot + self.conv + self.splash

    @property
    def uncounted(self) -> int:
        """Operations that the compiler's `cost_analysis` omits."""
        return self.splash + self.padding + self.repeated

    def per_chip(self, compiler_count: float, chips: int) -> float:
        """Operations of one chip, from the compiler's count for one chip and the number of chips.

        The compiler also counts only once the body of loops that it adds itself, to gather sharded
        weights piece by piece. Then an even share of all operations is the larger number.
        """
        return max(compiler_count + self.uncounted / chips, (self.useful + self.padding) / chips)

    def __add__(self, other: "Count") -> "Count":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Count(*(a + b for a, b in pairs))

    def __mul__(self, times: int) -> "Count":
        return Count(*(times * a for a in dataclasses.astuple(self)))


def count_flops(function, *args) -> Count:
    """Counts function(*args), over all devices. args: arrays or ShapeDtypeStructs."""
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def program_flops(
    traced: jax.stages.Traced, compiled: jax.stages.Compiled, chips: int
) -> tuple[float, float]:
    """(operations, `Count.fetched` bytes) of one chip.

    The operations are the compiler's count plus what it omits.
    """
    counted = jaxpr_flops(traced.jaxpr.jaxpr)
    compiler_count = (compiled.cost_analysis() or {}).get("flops", 0.0)
    return counted.per_chip(compiler_count, chips), counted.fetched / chips


def jaxpr_flops(jaxpr: core.Jaxpr) -> Count:
    """Counts the equations of a jaxpr."""
    return sum((equation_flops(eqn) for eqn in jaxpr.eqns), Count())


def equation_flops(eqn: Any) -> Count:
    """Counts one equation, including the jaxprs inside it."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return Count(dot=dot_flops(eqn))
    if name == "conv_general_dilated":
        return Count(conv=convolution_flops(eqn))
    if name == "pallas_call":
        return splash_flops(eqn)
    if name == "cond":
        branches = [jaxpr_flops(branch.jaxpr) for branch in params["branches"]]
        return max(branches, key=lambda branch: branch.useful)
    body = sum((jaxpr_flops(inner) for inner in inner_jaxprs(params)), Count())
    if name == "scan":
        length = params["length"]
        return dataclasses.replace(
            body * length, repeated=body.repeated + (length - 1) * (body.dot + body.conv)
        )
    return body * (math.prod(params["mesh"].shape.values()) if name == "shard_map" else 1)


def inner_jaxprs(params: dict) -> Iterator[core.Jaxpr]:
    """The jaxprs inside an equation's parameters."""
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                yield inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner


def dot_flops(eqn: Any) -> int:
    """Operations of a matrix product."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return (
        2
        * math.prod(eqn.outvars[0].aval.shape)
        * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    )


def convolution_flops(eqn: Any) -> int:
    """Operations of a convolution; its two gradients are convolutions too."""
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    _, in_features, *window = (kernel[axis] for axis in numbers.rhs_spec)
    return (
        2
        * math.prod(eqn.outvars[0].aval.shape)
        * in_features
        * math.prod(window)
        // math.prod(eqn.params["lhs_dilation"])
    )


def splash_flops(eqn: Any) -> Count:
    """Operations of one of splash attention's kernels.

    Its 16-bit operands are q, k and v, [..., heads, length, head_dim] or with the last two axes
    swapped. The output of the forward kernel and the output gradient, an operand of the backward
    kernels, are always [..., heads, Q, head_dim].
    """
    label = eqn.params.get("name") or str(eqn.params.get("name_and_src_info"))
    kind = next((kind for kind in SPLASH if kind in label), None)
    if "splash" not in label or kind is None:
        raise NotImplementedError(f"there is no formula for the pallas kernel {label!r}")
    inputs, outputs = (
        [x.aval for x in side if x.aval.ndim >= 3 and x.aval.dtype.itemsize > 1]
        for side in (eqn.invars, eqn.outvars)
    )
    q, k, v = inputs[:3]
    out = next(
        x
        for x in inputs[3:] + outputs
        if x.shape[:-2] == q.shape[:-2]
        and x.size == q.size
        and set(x.shape[-2:]) == set(q.shape[-2:])
    )
    *heads, Q, D = out.shape
    K = k.size // (math.prod(heads) * D)
    useful = SPLASH[kind] * 2 * math.prod(heads) * Q * K * D
    *_, first, second, third = eqn.params["grid_mapping"].grid
    if kind == "dkv":  # grid: blocks of keys, heads, blocks of queries
        fetched = (first - 1) * (tiled_bytes(q) + tiled_bytes(out))
    else:  # grid: heads, blocks of queries, blocks of keys; a single block of keys is read once
        fetched = (second - 1) * (tiled_bytes(k) + tiled_bytes(v)) if third > 1 else 0
    return Count(splash=useful, padding=useful * (-D % LANES) // D, fetched=fetched)


def tiled_bytes(x: Any) -> int:
    """Bytes of a 16-bit array in TPU memory, whose last two axes are padded to 16 x 128 tiles."""
    *rest, rows, columns = x.shape
    return math.prod(rest) * (rows + -rows % 16) * (columns + -columns % LANES) * 2
