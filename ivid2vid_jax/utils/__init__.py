"""Files, storage, command lines and statistics that every package may use."""
