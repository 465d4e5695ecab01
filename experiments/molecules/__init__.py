"""Molecules of a run: settings, metrics, sampling, files, pictures."""
