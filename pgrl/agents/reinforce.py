"""REINFORCE in its GPOMDP form (Williams 1992; Baxter and Bartlett 2001), also called Vanilla-PG.

sample τ_t ~ p(. | θ_t)
d_t = g(τ_t, θ_t)
θ_{t+1} = θ_t + γ_t d_t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.ranges import NonNegative, Positive, check_fields
from pgrl.agent import Ascent, Metrics, World
from pgrl.schedules import polynomial


@dataclass(frozen=True)
class REINFORCE:
    """Stochastic gradient ascent."""

    step_size: Positive
    """γ_0: the step at t = 0, multiplied by the gradient"""
    step_power: NonNegative = 2 / 3
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""

    unbiased: ClassVar[bool] = True
    order: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, theta: Tensor) -> Ascent:
        return Ascent(theta, torch.zeros_like(theta), 0)

    def step(self, state: Ascent, world: World) -> tuple[Ascent, Metrics]:
        theta, _, t = state
        step = polynomial(self.step_size, self.step_power, t)
        (tau,) = world.sample(theta)
        d = world.gradient(theta, tau)
        return Ascent(theta + step * d, d, t + 1), {"opt/step_size": step}
