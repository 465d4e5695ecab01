"""N-PG-IGT: normalised policy gradient with implicit gradient transport (Fatkhullin et al. 2023, Algorithm 1).

    θ_{-1} = θ_0
    for t = 0, 1, ...
        θ~_t = θ_t + ((1-η_t)/η_t) (θ_t - θ_{t-1})           look ahead
        sample τ_t ~ p(. | θ~_t)                             sampled and differentiated at θ~_t
        d_t = (1-η_t) d_{t-1} + η_t g(τ_t, θ~_t)             (d_0 = g(τ_0, θ_0))
        θ_{t+1} = θ_t + γ_t d_t/‖d_t‖

If the Hessian is constant, the look-ahead cancels the bias of d_{t-1} exactly; otherwise an error of second order in the step
remains. Both lines must use the same η_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.ranges import NonNegative, Positive, Weight, check_fields
from pgrl.agent import Metrics, Transport, World, norm
from pgrl.fisher import StepNorm, unit_step
from pgrl.schedules import polynomial


@dataclass(frozen=True)
class NPGIGT:
    """Normalised policy gradient with implicit gradient transport; complexity ε^-2.5, one trajectory an iteration."""

    step_size: Positive
    """γ_0: the length of the step at t = 0, in the norm of step_norm; also sets the distance of the look-ahead point"""
    step_power: NonNegative = 1.0
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""
    step_norm: StepNorm = "euclidean"
    """norm in which a step has the length γ_t: euclidean, or fisher (natural gradient): a mean KL divergence of γ_t²/2"""
    eta: Weight = 1.0
    """η_0: the weight of the new gradient, in (0, 1]; at t = 0 it is always 1"""
    eta_power: NonNegative = 4 / 5
    """exponent of η_t = η_0 (2/(t+2))^p; 0 is a constant weight"""

    unbiased: ClassVar[bool] = False
    order: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, theta: Tensor) -> Transport:
        return Transport(theta, theta, torch.zeros_like(theta), 0)

    def step(self, state: Transport, world: World) -> tuple[Transport, Metrics]:
        theta, theta_prev, d, t = state
        step = polynomial(self.step_size, self.step_power, t)
        eta = polynomial(self.eta, self.eta_power, t) if t > 0 else 1.0
        look_ahead = theta + ((1 - eta) / eta) * (theta - theta_prev)
        (tau,) = world.sample(look_ahead)
        d = (1 - eta) * d + eta * world.gradient(look_ahead, tau)
        metrics: Metrics = {"opt/step_size": step, "opt/eta": eta, "opt/look_ahead": norm(look_ahead - theta)[:, 0]}
        return Transport(theta + step * unit_step(self.step_norm, d, world, theta, tau), theta, d, t + 1), metrics
