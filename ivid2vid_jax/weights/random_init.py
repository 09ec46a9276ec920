"""Random initial parameters by Flax's own rules, drawn with numpy.

XLA needs minutes to compile the hundreds of draws of a U-Net; numpy compiles nothing. Each
parameter depends on the seed and on its own path only, so its values are the same on any mesh and
in any net that contains it.
"""

import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import flax
import jax
import jax.extend
import numpy as np

from ivid2vid_jax.models.clip import LOGIT_SCALE
from ivid2vid_jax.models.transformer import sinusoidal_encoding

CONSTANTS = {"scale": 1.0, "logit_scale": LOGIT_SCALE}
TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal truncated at +-2


def init_params(
    init: Callable[[jax.Array], Any], seed: int, paths: Iterable[tuple] | None = None
) -> dict[tuple, np.ndarray]:
    """Initial values of a module's parameters: Flax path -> float32 array.

    Kernels are lecun_normal, embeddings normal with variance 1/features, as in Flax's layers;
    constants are those of `CONSTANTS`, else 0.

    Args:
        init: key -> parameter tree. It is traced, never run: the trace shows which leaves are
            random and which are constant.
        seed: seed of all parameters.
        paths: the parameters to compute; None for all.
    """
    jaxpr, shapes = jax.make_jaxpr(
        lambda key: flax.traverse_util.flatten_dict(init(key)), return_shape=True
    )(jax.random.key(0))
    # make_jaxpr orders a dict's leaves by key
    is_random = dict(zip(sorted(shapes), outputs_depend_on_key(jaxpr.jaxpr), strict=True))
    return {
        path: init_leaf(path, shapes[path].shape, is_random[path], seed)
        for path in (shapes if paths is None else paths)
    }


def outputs_depend_on_key(jaxpr) -> list[bool]:
    """Whether each output of a jaxpr depends on its first input, the random key."""

    def depends(variable) -> bool:
        return not isinstance(variable, jax.extend.core.Literal) and variable in dependent

    dependent = set(jaxpr.invars[:1])
    for equation in jaxpr.eqns:
        if any(map(depends, equation.invars)):
            dependent |= set(equation.outvars)
    return [depends(variable) for variable in jaxpr.outvars]


def init_leaf(path: tuple, shape: tuple[int, ...], is_random: bool, seed: int) -> np.ndarray:
    """Initial value of one parameter, float32."""
    if path[-1] == "pe":
        return sinusoidal_encoding(*shape[1:])
    if not is_random:
        return np.full(shape, CONSTANTS.get(path[-1], 0.0), np.float32)
    rng = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
    if path[-1] == "embedding":
        return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[-1]))
    if path[-1] != "kernel":
        raise ValueError(f"{'/'.join(path)}: no initialiser for a random {path[-1]!r}")
    fan_in = math.prod(shape[:-1])
    return truncated_normal(rng, shape) * np.float32(1 / math.sqrt(fan_in) / TRUNCATED_STD)


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normal samples truncated at +-2 by rejection."""
    samples = rng.standard_normal(shape, np.float32)
    while (rejected := np.abs(samples) > 2).any():
        samples[rejected] = rng.standard_normal(int(rejected.sum()), np.float32)
    return samples
