"""Comparisons of several editors or training recipes."""
