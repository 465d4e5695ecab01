"""Polynomial schedules of the step size and of η: c0 · (2/(t+2))^p, which is c0 at t = 0.

p = 0 is a constant. The exponents of the theorems (p for the step size, p for η):

    Vanilla-PG (2/3, -)    N-MPG (1, 2/3)    N-PG-IGT (1, 4/5)    HARPG (1/2, 1)    N-HARPG (1, 1)    SHARP (2/3, 2/3)
"""

from __future__ import annotations

import math


def polynomial(c0: float, power: float, t: int) -> float:
    """c0 · (2/(t+2))^power at iteration t >= 0."""
    return c0 * (2 / (t + 2)) ** power


def check_step(step_size: float, step_power: float) -> None:
    """Check a step-size schedule.

    Raises:
        ValueError: the step size is not positive and finite, or the exponent is negative.
    """
    if not (step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"step_size is {step_size}, expected a positive number")
    if not step_power >= 0:
        raise ValueError(f"step_power is {step_power}, expected 0 (constant) or more")


def check_eta(eta: float, eta_power: float) -> None:
    """Check a schedule of η.

    Raises:
        ValueError: η is outside (0, 1], or the exponent is negative.
    """
    if not 0 < eta <= 1:
        raise ValueError(f"eta is {eta}, expected a weight in (0, 1]")
    if not eta_power >= 0:
        raise ValueError(f"eta_power is {eta_power}, expected 0 (constant) or more")
