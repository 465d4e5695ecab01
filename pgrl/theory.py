"""The constants of Fatkhullin et al. 2023, for a policy with ‖∇log π‖ ≤ M_g, ‖∇²log π‖ ≤ M_h and rewards |r| ≤ r_max.

The theorems need these bounds. They are far from tight in practice, where step sizes are tuned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def suggest_horizon(iterations: int, discount: float) -> int:
    """The horizon of Theorems 1-3.

    Args:
        iterations: T, at least 1.
        discount: in [0, 1).

    Returns:
        log(T + 1)/(1 - discount), rounded up.

    Raises:
        ValueError: an argument is out of range.
    """
    if iterations < 1 or not 0 <= discount < 1:
        raise ValueError(f"got {iterations} iterations and discount {discount}, expected at least 1 and a discount in [0, 1)")
    return math.ceil(math.log(iterations + 1) / (1 - discount))


@dataclass(frozen=True)
class ProblemConstants:
    """Bounds of a policy and an environment, and what follows from them.

    Args:
        r_max: |r| is at most this.
        M_g: ‖∇log π(a|s)‖ is at most this.
        M_h: ‖∇²log π(a|s)‖ is at most this.
        discount: in [0, 1).
    """

    r_max: float
    M_g: float
    M_h: float
    discount: float

    @property
    def L_g(self) -> float:
        """Lipschitz constant of ∇J."""
        return self.r_max * (self.M_g**2 + self.M_h) / (1 - self.discount) ** 2

    @property
    def sigma_g(self) -> float:
        """Bound on the standard deviation of g(τ, θ)."""
        return self.r_max * self.M_g / (1 - self.discount) ** 1.5

    def sigma_h(self, horizon: int) -> float:
        """Bound on the standard deviation of B(τ, θ): it grows with the horizon, unlike σ_g."""
        return self.r_max * math.sqrt(horizon**2 * self.M_g**4 + self.M_h**2) / (1 - self.discount) ** 2

    def return_truncation(self, horizon: int) -> float:
        """Upper bound of J - J_H."""
        return self.r_max * self.discount**horizon / (1 - self.discount)

    def gradient_truncation(self, horizon: int) -> float:
        """‖∇J_H - ∇J‖ ≤ D_g discount^H."""
        tail = 1 / (1 - self.discount)
        return self.M_g * self.r_max * tail * math.sqrt(tail + horizon) * self.discount**horizon

    def hessian_truncation(self, horizon: int) -> float:
        """‖∇²J_H - ∇²J‖ ≤ D_h discount^H."""
        tail = 1 / (1 - self.discount)
        return self.r_max * (self.M_h + self.M_g**2) * tail * (horizon + tail) * self.discount**horizon
