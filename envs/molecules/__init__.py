"""Molecules as trees of building blocks: the vocabulary and its tables, the walk among trees, the bridge to RDKit."""
