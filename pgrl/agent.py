"""What an agent is, and what it is given.

An agent is a frozen dataclass of hyperparameters with two pure methods:

    init(theta) -> state                          theta [S, D]
    step(state, world) -> (state, metrics)        one iteration

`state` is a NamedTuple of tensors [S, ...] and integers, with at least `theta`, the iterate, and `d`, the direction of the
last step. `world` is all that an agent may call; it counts every episode that is asked for.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.core import Trajectories
from pgrl.policy import Policy

Metrics = dict[str, Tensor | float]


class World(Protocol):
    """One iteration's access to the problem.

    sample(theta, ...)            plays a batch of episodes at each parameter point given, independently; `n` overrides the
                                  batch size
    gradient(theta, tau)          g(τ, θ), [S, D]: unbiased for ∇J_H(θ) if tau was sampled at theta
    hessian_vector(theta, tau, u) B(τ, θ)u, [S, D]: unbiased for ∇²J_H(θ)u if tau was sampled at theta
    uniform()                     one number in (0, 1) for each seed, [S, 1], fresh at each call
    policy, discount              for estimators of one's own: policy.log_prob(theta, tau) -> [T, B] is differentiable
    """

    @property
    def policy(self) -> Policy: ...

    @property
    def discount(self) -> float: ...

    def sample(self, *thetas: Tensor, n: int | None = None) -> tuple[Trajectories, ...]: ...

    def gradient(self, theta: Tensor, tau: Trajectories) -> Tensor: ...

    def hessian_vector(self, theta: Tensor, tau: Trajectories, u: Tensor) -> Tensor: ...

    def uniform(self) -> Tensor: ...


class Agent(Protocol):
    """`unbiased`: E d_t = ∇J_H(θ_t) at every iteration, over everything random. `order`: without noise, d_t - ∇J_H(θ_t)
    shrinks like the step size to this power (None: there is no error at all). `pgrl check` holds an agent to both.
    """

    unbiased: ClassVar[bool]
    order: ClassVar[int | None]

    def init(self, theta: Tensor) -> Any: ...

    def step(self, state: Any, world: World) -> tuple[Any, Metrics]: ...


def norm(x: Tensor) -> Tensor:
    """Euclidean norm over the whole parameter vector of each seed, [S, 1]; no overflow or underflow on the way."""
    largest, scaled = _scaled(x)
    return largest * scaled.norm(dim=1, keepdim=True)


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(1, keepdim=True)
    return largest, x / torch.where(largest > 0, largest, 1.0)


def normalised(d: Tensor) -> Tensor:
    """d/‖d‖ of each seed, [S, D]; 0 where d = 0."""
    _, scaled = _scaled(d)
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0)


class Ascent(NamedTuple):
    """The state of methods without memory: where we are, the last direction, the iteration about to run."""

    theta: Tensor
    d: Tensor
    t: int


class Transport(NamedTuple):
    """The state of methods that carry their direction from the last iterate to this one."""

    theta: Tensor
    theta_prev: Tensor
    d: Tensor
    t: int
