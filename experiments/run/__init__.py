"""Run folders: config, metrics, checkpoints, TensorBoard."""
