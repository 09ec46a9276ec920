"""InstructVid2Vid in JAX/Flax: edit a video from a sentence, with a model that you can train, read and own."""

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "load"]


def __getattr__(name):
    if name in ("Pipeline", "load"):  # imported when asked for: `import ivid2vid_jax` stays light
        from ivid2vid_jax.inference import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
