"""InstructVid2Vid in JAX/Flax: instruction-based video editing that you can train yourself."""

__version__ = "0.1.0"
# name -> module; imported lazily, so that `import ivid2vid_jax` is fast
LAZY = {
    "EditResult": "ivid2vid_jax.inference.result",
    "Pipeline": "ivid2vid_jax.inference.pipeline",
    "load": "ivid2vid_jax.inference.pipeline",
    "save_video": "ivid2vid_jax.inference.result",
}
__all__ = ["EditResult", "Pipeline", "__version__", "load", "save_video"]


def __getattr__(name: str):
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
