"""HARPG: Hessian-aided recursive policy gradient (Fatkhullin et al. 2023, Algorithm 2).

    sample τ_0 ~ p(. | θ_0);  d_0 = g(τ_0, θ_0);  θ_1 = θ_0 + γ_0 d_0
    for t = 1, 2, ...
        q_t ~ Uniform(0, 1);  θ^_t = q_t θ_t + (1-q_t) θ_{t-1}
        sample τ_t ~ p(. | θ_t) and, independently, τ^_t ~ p(. | θ^_t)
        v_t = B(τ^_t, θ^_t) (θ_t - θ_{t-1})
        d_t = (1-η_t) (d_{t-1} + v_t) + η_t g(τ_t, θ_t)
        θ_{t+1} = θ_t + γ_t d_t

The mean of v_t over q_t and τ^_t is exactly ∇J(θ_t) - ∇J(θ_{t-1}): d_t is unbiased at every t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.ranges import NonNegative, Positive, Weight, check_fields
from pgrl.agent import Metrics, Transport, World, norm
from pgrl.schedules import polynomial


@dataclass(frozen=True)
class HARPG:
    """Hessian-aided recursive policy gradient; complexity ε^-2, two trajectories an iteration.

    The step is multiplied by the gradient, so it must suit the problem's scale: N-HARPG needs less tuning.
    """

    step_size: Positive
    """γ_0: the step at t = 0, multiplied by the direction"""
    step_power: NonNegative = 1 / 2
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""
    eta: Weight = 1.0
    """η_0: the weight of the new gradient, in (0, 1]; at t = 0 it is always 1"""
    eta_power: NonNegative = 1.0
    """exponent of η_t = η_0 (2/(t+2))^p; 0 is a constant weight"""

    unbiased: ClassVar[bool] = True
    order: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, theta: Tensor) -> Transport:
        return Transport(theta, theta, torch.zeros_like(theta), 0)

    def step(self, state: Transport, world: World) -> tuple[Transport, Metrics]:
        step = polynomial(self.step_size, self.step_power, state.t)
        eta = polynomial(self.eta, self.eta_power, state.t)
        d, metrics = direction(state, world, eta)
        return Transport(state.theta + step * d, state.theta, d, state.t + 1), {"opt/step_size": step, **metrics}


def direction(state: Transport, world: World, eta: float) -> tuple[Tensor, Metrics]:
    """d_t of HARPG and of everything built on it, [S, D]."""
    theta, theta_prev, d, t = state
    if t == 0:
        (tau,) = world.sample(theta)
        return world.gradient(theta, tau), {"opt/eta": 1.0}
    q = world.uniform()
    between = q * theta + (1 - q) * theta_prev
    tau, tau_between = world.sample(theta, between)
    v = world.hessian_vector(between, tau_between, theta - theta_prev)
    d = (1 - eta) * (d + v) + eta * world.gradient(theta, tau)
    return d, {"opt/eta": eta, "opt/correction_norm": norm(v)[:, 0]}
