"""Sampling of trajectories: the policy with exploration, replay, local search."""
