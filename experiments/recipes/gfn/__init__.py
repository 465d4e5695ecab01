"""Recipes of the GFlowNet tower."""
