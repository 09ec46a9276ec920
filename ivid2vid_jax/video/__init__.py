"""Clips in and out of files, fitted to the model's size, cut into windows."""
