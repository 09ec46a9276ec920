"""The trainer: state, step, sharding, checkpoints, the metrics log, the loop."""
