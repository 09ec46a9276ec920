"""Helpers for files, storage, command lines and statistics; imports no other package of ours."""
