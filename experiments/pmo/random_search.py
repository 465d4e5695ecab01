"""Random search: molecules of the source one after another, nothing learned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from experiments.pmo.score import Score

BATCH = 100


def random_search(score: Score, source: Iterator[str], rng: np.random.Generator) -> None:
    """Score until the budget is spent or the source is empty; the order is the source's."""
    while batch := list(itertools.islice(source, BATCH)):
        score(batch)
