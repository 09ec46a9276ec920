"""Metrics of edited clips, benchmarks, and their reports."""
