"""What a process needs before it computes: the compilation cache and the compute type."""

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from ivid2vid_jax.utils.errors import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs in a user cache folder, so that a second process starts fast.

    JAX_COMPILATION_CACHE_DIR names another folder; IVID2VID_CACHE=off turns the cache off. Returns the folder in use.
    """
    if os.environ.get("IVID2VID_CACHE") == "off":
        return None
    folder = jax.config.jax_compilation_cache_dir
    if folder is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = str(root / "ivid2vid_jax" / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return Path(folder)


COMPILER_OPTIONS = {
    # Convolutions by Eigen, not YNN: the embedded-size U-Net is 1.35x faster (jaxlib 0.10.2, 2 cores; tests/benchmarks/against_torch.py).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    # A product with split weights gathers them whole. By itself the compiler turns it into a loop over their pieces, each turn of which reads and writes
    # all activations: a temporal transformer's training step, 512x512 on 16 chips, moves 10 GB a clip so and 52 GB in loops (tests/planning/test_tpu_compiler.py).
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


@functools.cache
def compiler_options(device: jax.Device | None = None) -> dict[str, str] | None:
    """OPTIONS of a device's compiler (of the default device's), or None; a compiler that does not know them does without."""
    device = device or jax.local_devices()[0]
    options = COMPILER_OPTIONS.get(device.platform)
    if options is None:
        return None
    try:
        with jax.set_mesh(jax.sharding.Mesh([device], ("device",))):
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def jit(function, device: jax.Device | None = None, **options):
    """jax.jit with the `compiler_options` of the device that it is for, the default one if none is named."""
    return jax.jit(function, compiler_options=compiler_options(device), **options)


def compute_dtype(name: str = "auto"):
    """The arithmetic's type: "float32", "bfloat16", or "auto" (float32 on CPU, bfloat16 on TPU and GPU); "float64" where jax_enable_x64 is set."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown; choose auto, {' or '.join(DTYPES)}")
    if name == "float64" and not jax.config.jax_enable_x64:
        raise UserError("dtype float64 needs JAX_ENABLE_X64=1 in the environment")
    return DTYPES[name]


def trim_host_memory() -> None:
    """Gives what was freed back to the system, where the C library can (glibc): about 2 ms.

    Programs of several shapes fragment glibc's heap: without this, an edit of 1,024 frames at the embedded size came to hold a quarter more than one of 16.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def profile_trace(folder: Path | None):
    """A context that writes a trace of what runs in it, for TensorBoard's profile plugin or xprof; None: no trace."""
    return contextlib.nullcontext() if folder is None else jax.profiler.trace(str(folder))
