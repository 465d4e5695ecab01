"""One runnable script for each committed figure and table, whole on one page: copy one and change it.

    python -m experiments.studies.gridworld --out runs/gridworld               the figure, at full size
    python -m experiments.studies.gridworld --out runs/small --scale 0.01      a hundredth of every budget
    python -m experiments.studies.gridworld --out runs/gridworld --figure gap.svg

`--scale` multiplies every budget (environment steps, objects visited), never the number of seeds or of methods.
A study that was stopped goes on when the same command is given again; finished runs are loaded. Another scale needs
another folder.
"""

from __future__ import annotations

from experiments.cli.errors import UserError


def scaled(budget: int, scale: float) -> int:
    """`budget` times `scale`, at least 1.

    Raises:
        UserError: scale is not positive.
    """
    if not scale > 0:
        raise UserError(f"got --scale {scale}, expected more than 0")
    return max(1, round(budget * scale))
