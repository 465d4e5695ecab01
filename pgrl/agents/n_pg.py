"""N-PG: policy gradient with normalised steps and no momentum.

sample τ_t ~ p(. | θ_t)
d_t = g(τ_t, θ_t)
θ_{t+1} = θ_t + γ_t d_t/‖d_t‖          (θ_t when d_t = 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.ranges import NonNegative, Positive, check_fields
from pgrl.agent import Ascent, Metrics, World
from pgrl.fisher import StepNorm, unit_step
from pgrl.schedules import polynomial


@dataclass(frozen=True)
class NPG:
    """Normalised policy gradient; with a batch of one it need not converge."""

    step_size: Positive
    """γ_0: the length of the step at t = 0, in the norm of step_norm"""
    step_power: NonNegative = 2 / 3
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""
    step_norm: StepNorm = "euclidean"
    """norm in which a step has the length γ_t: euclidean, or fisher (natural gradient): a mean KL divergence of γ_t²/2"""

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
        theta = theta + step * unit_step(self.step_norm, d, world, theta, tau)
        return Ascent(theta, d, t + 1), {"opt/step_size": step}
