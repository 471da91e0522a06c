"""What trackers of experiments get of a run: Weights & Biases, MLflow, comet."""
