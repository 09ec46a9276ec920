"""Out to PyTorch and in from everyone's formats: export, import, inspect."""
