"""The stages of the data engine: which items, what each result depends on, and the work."""
