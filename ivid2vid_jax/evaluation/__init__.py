"""Metrics of edited clips, and what puts them into tables and pictures."""
