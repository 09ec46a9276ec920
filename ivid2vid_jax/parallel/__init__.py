"""Meshes, placement and processes."""
