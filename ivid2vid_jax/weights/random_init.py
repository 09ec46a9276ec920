"""Fresh parameters by flax's own rules, drawn in numpy: XLA takes minutes to compile the hundreds of draws of a U-Net, numpy none.

A parameter's values depend on the seed and its own name alone, so they are the same on any mesh and whatever else the net holds.
"""

import math
import zlib
from collections.abc import Callable, Iterable

import flax
import jax
import jax.extend
import numpy as np

from ivid2vid_jax.models.clip import LOGIT_SCALE
from ivid2vid_jax.models.transformer import sinusoidal_encoding

CONSTANTS = {"scale": 1.0, "logit_scale": LOGIT_SCALE}
TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal cut off at +-2


def init_params(
    init: Callable, seed: int, paths: Iterable[tuple] | None = None
) -> dict[tuple, np.ndarray]:
    """Initial values of a module's parameters, or of some of them: Flax path -> float32 array.

    init: key -> parameter tree (it is traced, never run): which leaves it draws and which are constant is read off it. Kernels are
    lecun_normal and embeddings normal with variance 1/features, as flax's layers have them; constants: `CONSTANTS`, else 0.
    """
    jaxpr, shapes = jax.make_jaxpr(
        lambda key: flax.traverse_util.flatten_dict(init(key)), return_shape=True
    )(jax.random.key(0))
    drawn = dict(
        zip(sorted(shapes), depends(jaxpr.jaxpr), strict=True)
    )  # make_jaxpr orders a dict's leaves by key
    return {
        path: value(path, shapes[path].shape, drawn[path], seed)
        for path in (shapes if paths is None else paths)
    }


def depends(jaxpr) -> list[bool]:
    """Whether each output hangs on the first input, the key."""
    known = set(jaxpr.invars[:1])
    for equation in jaxpr.eqns:
        if any(not isinstance(x, jax.extend.core.Literal) and x in known for x in equation.invars):
            known |= set(equation.outvars)
    return [not isinstance(x, jax.extend.core.Literal) and x in known for x in jaxpr.outvars]


def value(path: tuple, shape: tuple[int, ...], is_drawn: bool, seed: int) -> np.ndarray:
    """One leaf, float32."""
    if path[-1] == "pe":
        return sinusoidal_encoding(*shape[1:])
    if not is_drawn:
        return np.full(shape, CONSTANTS.get(path[-1], 0.0), np.float32)
    rng = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
    if path[-1] == "embedding":
        return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[-1]))
    if path[-1] != "kernel":
        raise ValueError(f"{'/'.join(path)}: no rule to draw a {path[-1]!r}")
    fan_in = math.prod(shape[:-1])
    return truncated(rng, shape) * np.float32(1 / math.sqrt(fan_in) / TRUNCATED_STD)


def truncated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normal, drawn again wherever it lies beyond +-2."""
    out = rng.standard_normal(shape, np.float32)
    while (beyond := np.abs(out) > 2).any():
        out[beyond] = rng.standard_normal(int(beyond.sum()), np.float32)
    return out
