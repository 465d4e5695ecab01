"""Figures and aggregate statistics of finished runs."""
