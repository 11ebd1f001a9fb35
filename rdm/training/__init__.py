"""Training: data, objectives, the loop, checkpoints; only `engine` uses DeepSpeed."""
