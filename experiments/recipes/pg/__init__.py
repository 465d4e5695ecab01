"""Recipes of the policy-gradient tower."""
