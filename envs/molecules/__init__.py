"""Molecules as trees of building blocks: vocabularies and their tables, trees as a DAG, conversion to RDKit."""
