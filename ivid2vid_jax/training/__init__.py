"""Training: config, initial weights, objectives, step, checkpoints, metrics, the loop."""
