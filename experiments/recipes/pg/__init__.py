"""Recipes of `pgrl`."""
