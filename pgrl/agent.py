"""The protocols of an agent and of the `World` it is given, and the states that agents share.

An agent is a frozen dataclass of hyperparameters with two pure methods:

    init(theta) -> state                          theta [S, D]
    step(state, world) -> (state, metrics)        one iteration

`state` is a NamedTuple of tensors [S, ...] and integers, with at least `theta`, the iterate, and `d`, the direction of the
last step. An agent calls nothing but `world`, which counts every episode that it samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.core import Trajectories
from pgrl.policy import Policy

Metrics = dict[str, Tensor | float]
Sizes = int | Sequence[int | None] | None  # episodes at each point, for all thetas or for each; None: the batch size


class World(Protocol):
    """What an agent may call in one iteration.

    sample(theta, ...)            sample a batch of episodes at each given theta [S, D], independently; `n` overrides the number
                                  of episodes of each seed, for all or for each theta; one Trajectories for each theta
    gradient(theta, tau)          g(τ, θ), [S, D]: unbiased for ∇J_H(θ) if tau was sampled at theta
    hessian_vector(theta, tau, u) B(τ, θ)u, [S, D]: unbiased for ∇²J_H(θ)u if tau was sampled at theta
    uniform(m)                    m numbers in (0, 1) for each seed, [S, m], new at each call; m is 1 by default
    batch_size                    the number of episodes that `n` overrides
    policy, discount              for other estimators: policy.log_prob(theta, tau) -> [T, B] is differentiable

    A theta may also be [S·m, D], m points for each seed, grouped by seed: a batch is then of each point, and so are results.
    """

    @property
    def policy(self) -> Policy: ...

    @property
    def discount(self) -> float: ...

    @property
    def batch_size(self) -> int: ...

    def sample(self, *thetas: Tensor, n: Sizes = None) -> tuple[Trajectories, ...]: ...

    def gradient(self, theta: Tensor, tau: Trajectories) -> Tensor: ...

    def hessian_vector(self, theta: Tensor, tau: Trajectories, u: Tensor) -> Tensor: ...

    def uniform(self, m: int = 1) -> Tensor: ...


class Agent(Protocol):
    """An algorithm: a frozen dataclass of hyperparameters. `pgrl check` tests the two claims that it makes.

    unbiased  E[d_t - ∇J_H(θ_t)] = 0 at every iteration, over all randomness
    order     of an agent that is not: the mean of d_t - ∇J_H(θ_t) is proportional to the step size to this power. None: it is 0
              without noise, with exact gradients and Hessians. 0: no claim

    Whatever it claims, d_0 is held to be unbiased, and an agent that is not unbiased to take the mean of its estimates:
    E[d_t | history] is the d_t of exact gradients. That is not tested of an agent with an attribute `biases`, the names of its
    biased hyperparameters that are set, as long as there are any.
    """

    @property
    def unbiased(self) -> bool: ...

    @property
    def order(self) -> int | None: ...

    def init(self, theta: Tensor) -> Any: ...

    def step(self, state: Any, world: World) -> tuple[Any, Metrics]: ...


def batch_sizes(n: Sizes, batch_size: int, points: int) -> tuple[int, ...]:
    """`n` of `World.sample` as a number for each theta.

    Raises:
        ValueError: there are not as many numbers as points.
    """
    each = n if isinstance(n, Sequence) else [n] * points
    if len(each) != points:
        raise ValueError(f"got {len(each)} numbers of episodes, expected one for each of {points} points")
    return tuple(k or batch_size for k in each)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of the parameter vector of each seed, [S, D] -> [S, 1], without overflow or underflow."""
    largest, scaled = _scaled(x)
    return largest * scaled.norm(dim=1, keepdim=True)


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(1, keepdim=True)
    return largest, x / torch.where(largest > 0, largest, 1.0)


def normalised(d: Tensor) -> Tensor:
    """d/‖d‖ of each seed, [S, D] -> [S, D]; 0 where d = 0."""
    _, scaled = _scaled(d)
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0)


class Ascent(NamedTuple):
    """State of agents without memory of earlier iterates: the iterate, the last direction, the number of the next iteration."""

    theta: Tensor
    d: Tensor
    t: int


class Transport(NamedTuple):
    """State of agents that correct their direction for the last step: also the previous iterate."""

    theta: Tensor
    theta_prev: Tensor
    d: Tensor
    t: int
