"""Editing clips: the pipeline, the VAE codec and the sampling loop."""
