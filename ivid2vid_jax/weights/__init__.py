"""Checkpoint formats: safetensors, PyTorch pickles, pipeline folders, inflation.

The only package that knows PyTorch's parameter names and layouts.
"""
