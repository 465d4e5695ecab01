"""Polynomial schedules of the step size and of η: c0 · (2/(t+2))^p, which is c0 at t = 0.

p = 0 is a constant. The exponents of the theorems (p for the step size, p for η):

    Vanilla-PG (2/3, -)    N-MPG (1, 2/3)    N-PG-IGT (1, 4/5)    HARPG (1/2, 1)    N-HARPG (1, 1)    SHARP (2/3, 2/3)
"""

from __future__ import annotations


def polynomial(c0: float, power: float, t: int) -> float:
    """c0 · (2/(t+2))^power at iteration t >= 0."""
    return c0 * (2 / (t + 2)) ** power
