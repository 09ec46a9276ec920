"""Triplets: a clip, an instruction and the edited clip. Where they come from, and how they are kept."""
