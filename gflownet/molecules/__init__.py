"""Molecules: fingerprints, metrics, the buffer of the best."""
