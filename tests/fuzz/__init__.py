"""Loaders and hostile files."""
