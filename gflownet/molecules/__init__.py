"""Molecules: fingerprints, metrics, the top-K buffer."""
