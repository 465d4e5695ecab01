"""One runnable script for each committed figure and table, whole on one page: copy one and change it.

    python -m experiments.studies.gridworld --out runs/gridworld              the figure, at full size
    python -m experiments.studies.gridworld --out runs/gridworld --scale 0.01  a hundredth of every budget

A study that was stopped goes on when the same command is given again; finished runs are loaded.
"""

from __future__ import annotations


def scaled(budget: int, scale: float) -> int:
    """`budget` times `scale`, at least 1.

    Raises:
        ValueError: scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"got scale {scale}, expected more than 0")
    return max(1, round(budget * scale))
