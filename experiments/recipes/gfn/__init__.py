"""Recipes of `gflownet`."""
