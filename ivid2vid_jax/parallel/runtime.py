"""Settings of a process: compilation cache, compiler options, compute dtype, memory, profiling."""

import contextlib
import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from ivid2vid_jax.errors import UserError

log = logging.getLogger(__name__)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}

# Seconds of compilation from which on a program is cached.
MIN_CACHED_COMPILE_TIME = 0.2


def enable_compilation_cache() -> Path | None:
    """Stores compiled programs in a user cache folder, so that a second process starts fast.

    JAX_COMPILATION_CACHE_DIR names another folder; IVID2VID_CACHE=off turns the cache off. Returns
    the folder in use, or None.
    """
    if os.environ.get("IVID2VID_CACHE") == "off":
        return None
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined] # dynamic
    if folder is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = str(root / "ivid2vid_jax" / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_CACHED_COMPILE_TIME)
    return Path(folder)


COMPILER_OPTIONS = {
    # Convolutions by Eigen instead of YNN: the embedded-size U-Net is 1.35 times as fast
    # (jaxlib 0.10.2, 2 cores; tests/benchmarks/against_torch.py).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    # Gathers split weights whole before a product. By default the compiler loops over their
    # pieces, and each iteration reads and writes all activations: the training step of a temporal
    # transformer, 512x512 on 16 chips, then moves 52 GB per clip instead of 10 GB (compiler
    # estimate; tests/planning/test_tpu_compiler.py).
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


@functools.cache
def compiler_options(device: jax.Device | None = None) -> dict[str, str] | None:
    """The COMPILER_OPTIONS of a device's platform.

    None if there are none, or, with a warning, if the installed compiler refuses them. device: the
    default device if None.
    """
    device = device or jax.local_devices()[0]
    options = COMPILER_OPTIONS.get(device.platform)
    if options is None:
        return None
    try:
        with jax.set_mesh(jax.sharding.Mesh([device], ("device",))):
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        log.warning(
            "the %s compiler refuses the options %s and compiles without them (slower, or with "
            "more memory): %s",
            device.platform,
            ", ".join(options),
            str(error).splitlines()[0],
        )
        return None
    return options


def jit(function: Callable, device: jax.Device | None = None, **options) -> jax.stages.Wrapped:
    """jax.jit with the `compiler_options` of a device (the default device if None)."""
    return jax.jit(function, compiler_options=compiler_options(device), **options)


def compute_dtype(name: str = "auto"):
    """The dtype of the computation.

    Args:
        name: "float32", "bfloat16", "float64" (with JAX_ENABLE_X64), or "auto": float32 on CPU,
            bfloat16 on TPU and GPU.

    Raises:
        UserError: for an unknown name, or float64 without JAX_ENABLE_X64.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown; choose auto, {' or '.join(DTYPES)}")
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined] # dynamic
    if name == "float64" and not x64:
        raise UserError("dtype float64 needs JAX_ENABLE_X64=1 in the environment")
    return DTYPES[name]


def trim_host_memory() -> None:
    """Returns freed memory to the system, if the C library can (glibc); takes about 2 ms.

    Programs of several shapes fragment glibc's heap: without this, an edit of 1,024 frames at the
    embedded size holds 25% more memory than one of 16.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def profile_trace(folder: Path | None):
    """A context that writes a profile for TensorBoard or xprof to a folder; None: no profile."""
    return contextlib.nullcontext() if folder is None else jax.profiler.trace(str(folder))
