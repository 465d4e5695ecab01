"""Generative flow networks: sample objects in proportion to a reward. The room is kept; the tower comes next."""
