"""Environments, their exact solutions, and `rollout`, which samples trajectories."""
