"""N-MPG: normalised policy gradient with momentum (Cutkosky and Mehta 2020, arXiv 2002.03305).

    sample τ_t ~ p(. | θ_t)
    d_t = (1-η_t) d_{t-1} + η_t g(τ_t, θ_t)          (d_0 = g(τ_0, θ_0))
    θ_{t+1} = θ_t + γ_t d_t/‖d_t‖

d_{t-1} contains gradients at earlier iterates, which gives a bias of first order in the step, L_g γ/η.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.ranges import NonNegative, Positive, Weight, check_fields
from pgrl.agent import Ascent, Metrics, World
from pgrl.fisher import StepNorm, unit_step
from pgrl.schedules import polynomial


@dataclass(frozen=True)
class NMPG:
    """Normalised policy gradient with momentum."""

    step_size: Positive
    """γ_0: the length of the step at t = 0, in the norm of step_norm"""
    step_power: NonNegative = 1.0
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""
    step_norm: StepNorm = "euclidean"
    """norm in which a step has the length γ_t: euclidean, or fisher (natural gradient): a mean KL divergence of γ_t²/2"""
    eta: Weight = 1.0
    """η_0: the weight of the new gradient, in (0, 1]; at t = 0 it is always 1"""
    eta_power: NonNegative = 2 / 3
    """exponent of η_t = η_0 (2/(t+2))^p; 0 is a constant weight"""

    unbiased: ClassVar[bool] = False
    order: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, theta: Tensor) -> Ascent:
        return Ascent(theta, torch.zeros_like(theta), 0)

    def step(self, state: Ascent, world: World) -> tuple[Ascent, Metrics]:
        theta, d, t = state
        step = polynomial(self.step_size, self.step_power, t)
        eta = polynomial(self.eta, self.eta_power, t) if t > 0 else 1.0
        (tau,) = world.sample(theta)
        d = (1 - eta) * d + eta * world.gradient(theta, tau)
        theta = theta + step * unit_step(self.step_norm, d, world, theta, tau)
        return Ascent(theta, d, t + 1), {"opt/step_size": step, "opt/eta": eta}
