"""Adam-PG: policy gradient with the steps of Adam (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 1).

    sample τ_t ~ p(. | θ_t);  g_t = g(τ_t, θ_t)
    d_t = (1-η_t) d_{t-1} + η_t g_t                (d_0 = g_0)
    s_t = (1-ν_t) s_{t-1} + ν_t g_t²               (s_0 = g_0², by coordinate)
    θ_{t+1} = θ_t + γ_t d_t/(√s_t + ε)             (by coordinate)

With η_t = η/(1 - (1-η)^{t+1}) and ν_t likewise, d_t and s_t are Adam's moments with the correction for their start at 0;
η = 1 - β_1 and ν = 1 - β_2.

The steps are biased: each coordinate of d_t is divided by a number that depends on the same episodes, so that the mean step
is not along the mean of d_t, and the method need not converge (Reddi, Kale and Kumar 2018). The direction d_t itself is
momentum: d_0 is unbiased, the bias at t > 0 is of first order in the step, and η = 1 leaves none. `pgrl check` tests this, so
the agent has no attribute `biases`, which would excuse d_t; the registry names what is biased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from envs.ranges import NonNegative, Positive, Weight, check_fields
from pgrl.agent import Metrics, World
from pgrl.schedules import polynomial


class Moments(NamedTuple):
    """The iterate, the last direction, the mean of the squares of gradients, the number of the next iteration."""

    theta: Tensor
    d: Tensor
    squares: Tensor
    t: int


@dataclass(frozen=True)
class AdamPG:
    """Policy gradient with the steps of Adam; biased, since they are not along the direction."""

    step_size: Positive
    """γ_0: the length of each coordinate's step at t = 0"""
    step_power: NonNegative = 0.0
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""
    eta: Weight = 0.1
    """η: the weight of the new gradient, in (0, 1], Adam's 1 - β_1; at t = 0 it is always 1"""
    square_weight: Weight = 0.001
    """biased: ν, the weight of the new squares, in (0, 1], Adam's 1 - β_2; steps are divided by the root of their mean"""
    epsilon: Positive = 1e-8
    """ε, added to that root"""

    unbiased: ClassVar[bool] = False
    order: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, theta: Tensor) -> Moments:
        return Moments(theta, torch.zeros_like(theta), torch.zeros_like(theta), 0)

    def step(self, state: Moments, world: World) -> tuple[Moments, Metrics]:
        theta, d, squares, t = state
        step = polynomial(self.step_size, self.step_power, t)
        eta, square_weight = _from_zero(self.eta, t), _from_zero(self.square_weight, t)
        (tau,) = world.sample(theta)
        g = world.gradient(theta, tau)
        d = (1 - eta) * d + eta * g
        squares = (1 - square_weight) * squares + square_weight * g**2
        theta = theta + step * d / (squares.sqrt() + self.epsilon)
        return Moments(theta, d, squares, t + 1), {"opt/step_size": step, "opt/eta": eta}


def _from_zero(weight: float, t: int) -> float:
    """The weight of the new term at which a running mean that starts at 0 needs no correction; 1 at t = 0."""
    return weight / (1 - (1 - weight) ** (t + 1)) if t > 0 else 1.0
