"""Meshes of devices, placement of arrays, and the processes of a run."""
