"""InstructVid2Vid in JAX/Flax: instruction-based video editing that you can train yourself."""

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "load"]


def __getattr__(name: str):
    if name in ("Pipeline", "load"):  # imported lazily, so that `import ivid2vid_jax` is fast
        from ivid2vid_jax.inference import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
