"""How many threads the libraries underneath may wake.

Products of a few rows are done before a second thread is awake, and threads that wait by spinning take the time of whatever
else the machine runs: beside another process two spinning threads made training up to a hundred times slower.
"""

from __future__ import annotations

import os

FEW = 64  # rows of an iteration below which one thread is the fastest
FEW_TREES = 1024  # the same for trees of blocks, whose work is many small products


def quiet() -> None:
    """To be called before numpy and torch are imported. What the user's environment says stays as it is."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy: it is used for small products only
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch: threads sleep while they wait


def fit(rows: int, trees: bool = False) -> None:
    """One thread for iterations of few rows; otherwise as many as torch chose."""
    import torch

    if rows < (FEW_TREES if trees else FEW):
        torch.set_num_threads(1)
