"""Conversion: export to PyTorch, import from other layouts, inspection."""
