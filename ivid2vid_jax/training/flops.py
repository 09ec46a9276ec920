"""Counts the arithmetic of a traced function: matrix products and convolutions, a multiply-add being two operations.

The TPU compiler counts a pallas kernel as nothing, so splash attention is counted here by its formula; and a loop's body once, so its other turns are
counted here. Padding around a convolution's input is counted, the zeros that a dilation puts between its pixels are not.
"""

import dataclasses
import math

import jax
from jax.extend import core

LANES = 128  # head widths are padded to them inside the kernel
# Matrix products of splash attention's three kernels, 2 Q K D operations each and head: what they compute anew is counted again.
SPLASH = {"fwd": 2, "dkv": 4, "dq": 3}


@dataclasses.dataclass(frozen=True)
class Count:
    """Operations of matrix products, convolutions and splash attention, and those that go into splash's padding. repeated: those of the first two that
    loops do after their first turn. fetched: bytes that splash attention's kernels read from HBM once more: all keys and values for every block of queries
    after the first, or the other way round.
    """

    dot: int = 0
    conv: int = 0
    splash: int = 0
    padding: int = 0
    repeated: int = 0
    fetched: int = 0

    @property
    def useful(self) -> int:
        return self.dot + self.conv + self.splash

    @property
    def uncounted(self) -> int:
        """What the compiler's own count (`cost_analysis`) leaves out: it knows no pallas kernel, and a loop's body once."""
        return self.splash + self.padding + self.repeated

    def on_a_chip(self, told: float, chips: int) -> float:
        """Of one chip, where the compiler told so many. Its own loops, in which it gathers split weights piece by piece, it counts once too: then an even
        split of all is more than what it told.
        """
        return max(told + self.uncounted / chips, (self.useful + self.padding) / chips)

    def __add__(self, other: "Count") -> "Count":
        return Count(
            *(
                a + b
                for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
            )
        )

    def __mul__(self, times: int) -> "Count":
        return Count(*(times * a for a in dataclasses.astuple(self)))


def count(function, *args) -> Count:
    """Of function(*args), over all devices together; args: arrays or ShapeDtypeStructs."""
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def program_flops(
    traced: jax.stages.Traced, compiled: jax.stages.Compiled, chips: int
) -> tuple[float, float]:
    """(operations, bytes that its text does not show to be moved) of one chip: by the compiler's own count, and by this one for what that leaves out."""
    found = jaxpr_flops(traced.jaxpr.jaxpr)
    return found.on_a_chip(
        (compiled.cost_analysis() or {}).get("flops", 0.0), chips
    ), found.fetched / chips


def jaxpr_flops(jaxpr) -> Count:
    return sum((of_equation(eqn) for eqn in jaxpr.eqns), Count())


def of_equation(eqn) -> Count:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return Count(dot=dot(eqn))
    if name == "conv_general_dilated":
        return Count(conv=convolution(eqn))
    if name == "pallas_call":
        return splash(eqn)
    if name == "cond":
        return max(
            (jaxpr_flops(branch.jaxpr) for branch in params["branches"]),
            key=lambda found: found.useful,
        )
    found = sum((jaxpr_flops(inner) for inner in bodies(params)), Count())
    if name == "scan":
        turns = params["length"]
        return dataclasses.replace(
            found * turns, repeated=found.repeated + (turns - 1) * (found.dot + found.conv)
        )
    return found * (math.prod(params["mesh"].shape.values()) if name == "shard_map" else 1)


def bodies(params: dict):
    """The jaxprs inside an equation's parameters."""
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                yield inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner


def dot(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return (
        2
        * math.prod(eqn.outvars[0].aval.shape)
        * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    )


def convolution(eqn) -> int:
    """Of a convolution or of one of its two gradients, which are convolutions too."""
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    _, in_features, *window = (kernel[axis] for axis in numbers.rhs_spec)
    return (
        2
        * math.prod(eqn.outvars[0].aval.shape)
        * in_features
        * math.prod(window)
        // math.prod(eqn.params["lhs_dilation"])
    )


def splash(eqn) -> Count:
    """Of one of splash attention's kernels. Its 16-bit operands are q, k and v, [..., heads, length, width] or with the last two the other way round, and
    going backwards the output's gradient, [..., heads, Q, width] always, as the output of the forward kernel is.
    """
    label = eqn.params.get("name") or str(eqn.params.get("name_and_src_info"))
    kind = next((kind for kind in SPLASH if kind in label), None)
    if "splash" not in label or kind is None:
        raise NotImplementedError(f"there is no formula for the pallas kernel {label!r}")
    given, made = (
        [x.aval for x in side if x.aval.ndim >= 3 and x.aval.dtype.itemsize > 1]
        for side in (eqn.invars, eqn.outvars)
    )
    q, k, v = given[:3]
    out = next(
        x
        for x in given[3:] + made
        if x.shape[:-2] == q.shape[:-2]
        and x.size == q.size
        and set(x.shape[-2:]) == set(q.shape[-2:])
    )
    *heads, Q, D = out.shape
    useful = SPLASH[kind] * 2 * math.prod(heads) * Q * (k.size // (math.prod(heads) * D)) * D
    *_, first, second, third = eqn.params[
        "grid_mapping"
    ].grid  # of dkv: keys' blocks, heads, queries' blocks; else heads, queries' blocks, keys' blocks
    if kind == "dkv":
        again = (first - 1) * (tiled(q) + tiled(out))
    else:
        again = (
            (second - 1) * (tiled(k) + tiled(v)) if third > 1 else 0
        )  # a single block of keys stays where it is
    return Count(splash=useful, padding=useful * (-D % LANES) // D, fetched=again)


def tiled(x) -> int:
    """Bytes of a 16-bit array in a TPU's memory: its last two axes are filled up to tiles of 16 x 128."""
    *rest, rows, columns = x.shape
    return math.prod(rest) * (rows + -rows % 16) * (columns + -columns % LANES) * 2
