"""Tests the claims of an agent (`unbiased`, `order`) on small MDPs whose gradients are known exactly.

bias     thousands of replicas start at the same θ_0 with different random numbers; if the agent is unbiased, the mean over
         replicas of d_t - ∇J_H(θ_t) is 0 at every t, however d_t is used
order    without noise (exact gradients and Hessians), d_t - ∇J_H(θ_t) is proportional to step^order
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.mdp.exact import Exact, ExactMDP, gradient, hessian_vector
from envs.mdp.tabular import garnet, gridworld
from envs.random import Rng
from pgrl.agent import Agent
from pgrl.policy import policy_for
from pgrl.problem import Problem

LIMIT = 4.5  # standard errors; among the few hundred means of a check, chance exceeds it once in hundreds of checks


@dataclass(frozen=True)
class CheckProblem:
    """A small MDP, its exact values, and the initial parameters of all replicas, [D]."""

    name: str
    problem: Problem
    exact: Exact
    theta: Tensor


@dataclass(frozen=True)
class Finding:
    """The error d_t - ∇J_H(θ_t) over replicas at iteration t.

    fraction  ‖mean error‖ / ‖mean gradient‖
    visible   the smallest detectable `fraction` of an error along the gradient: LIMIT standard errors
    z         largest |mean|/standard error, over coordinates and along the gradient
    rms       root mean square of ‖error‖
    """

    t: int
    fraction: float
    visible: float
    z: float
    rms: float


def check_problems(seeds: int, batch_size: int = 1) -> list[CheckProblem]:
    """Make the two test problems: a random MDP and a gridworld with slip, with short horizons, in float64.

    Args:
        seeds: replicas of the agent.
        batch_size: episodes of each replica at each theta it samples.
    """
    environments = [
        ("garnet", garnet(4, 2, 2, seed=3, horizon=6), 0.8),
        ("grid", gridworld("..P\n.#.\n..G", slip=0.2, horizon=8), 0.9),
    ]
    made = []
    for name, env, discount in environments:
        policy = policy_for(env, dtype=torch.float64)
        states = torch.arange(env.n_states)

        def log_pi(theta: Tensor, policy: Any = policy, states: Tensor = states) -> Tensor:
            return policy.log_probs_at(theta, states)

        theta = torch.randn(policy.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
        problem = Problem(env, policy, discount, tuple(range(seeds)), env.horizon, batch_size)
        made.append(CheckProblem(name, problem, ExactMDP(env, log_pi, discount), theta))
    return made


def bias(agent: Agent, case: CheckProblem, iterations: Sequence[int]) -> list[Finding]:
    """Compare the direction of an agent with the exact gradient, over all replicas.

    Args:
        agent: the agent.
        case: a problem from `check_problems`.
        iterations: numbers of iterations, from 0; the agent runs to the largest.

    Returns:
        A finding for each of `iterations`, in ascending order.
    """
    problem = case.problem
    state = agent.init(case.theta.expand(len(problem.seeds), -1).clone())
    found = []
    for t in range(max(iterations) + 1):
        before = state.theta
        state, _ = agent.step(state, problem.iteration(t))
        if t in iterations:
            truth = gradient(case.exact, before, problem.horizon)
            found.append(_finding(t, state.d.double() - truth, truth))
    return found


def _finding(t: int, error: Tensor, truth: Tensor) -> Finding:
    n, scale = len(error), float(truth.mean(0).norm())
    along = (error * truth).sum(1, keepdim=True) / truth.norm(dim=1, keepdim=True).clamp_min(1e-300)
    seen = torch.cat([error, along], 1)
    if not bool(torch.isfinite(seen).all()):  # NaN or infinity fails every claim
        return Finding(t, math.nan, math.nan, math.inf, math.nan)
    mean, standard = seen.mean(0), seen.std(0) / n**0.5
    ok = standard > 1e-12 * scale  # a coordinate without variance is either exact or wrong
    z = torch.where(ok, mean.abs() / standard, torch.where(mean.abs() > 1e-9 * scale, torch.inf, 0.0))
    rms = float(error.pow(2).sum(1).mean().sqrt())
    return Finding(t, float(error.mean(0).norm()) / scale, LIMIT * float(standard[-1]) / scale, float(z.max()), rms)


class NoiseFree:
    """A `World` with exact gradients and Hessian-vector products; its "trajectories" are the parameters themselves."""

    def __init__(self, case: CheckProblem, t: int, seeds: int) -> None:
        self._exact, self._horizon = case.exact, case.problem.horizon
        self.policy, self.discount = case.problem.policy, case.problem.discount
        self._rng, self._draws = Rng.of_seeds(range(seeds)).fold(t), 0
        self._rng.dtype = torch.float64

    def sample(self, *thetas: Tensor, n: int | None = None) -> tuple[Any, ...]:
        return thetas

    def gradient(self, theta: Tensor, tau: Any) -> Tensor:
        return gradient(self._exact, theta, self._horizon)

    def hessian_vector(self, theta: Tensor, tau: Any, u: Tensor) -> Tensor:
        return hessian_vector(self._exact, theta, u, self._horizon)

    def uniform(self) -> Tensor:
        self._draws += 1
        return self._rng.fold(self._draws).uniform(1)


def order(agent: Agent, case: CheckProblem, iterations: int = 12, seeds: int = 64) -> float | None:
    """Measure the order of the noise-free error in the agent's `step_size`.

    Args:
        agent: the agent.
        case: a problem from `check_problems`.
        iterations: iterations at each of three step sizes.
        seeds: replicas; they differ only in `World.uniform`.

    Returns:
        The exponent; inf if there is no error; None if the agent has no hyperparameter `step_size`, or if it reads trajectories
        itself, so that exact gradients cannot be substituted.
    """
    if not dataclasses.is_dataclass(agent) or not hasattr(agent, "step_size"):
        return None
    steps, errors = (0.04, 0.02, 0.01), []
    for step in steps:
        small: Any = dataclasses.replace(agent, step_size=step)
        state = small.init(case.theta.expand(seeds, -1).clone())
        try:
            for t in range(iterations):
                before = state.theta
                state, _ = small.step(state, NoiseFree(case, t, seeds))
        except (AttributeError, TypeError):
            return None
        truth = gradient(case.exact, before, case.problem.horizon)
        errors.append(float((state.d - truth).mean(0).norm() / truth.norm(dim=1).mean()))
    if max(errors) < 1e-10:
        return math.inf
    return math.log(errors[0] / errors[-1]) / math.log(steps[0] / steps[-1])


def decay(findings: Sequence[Finding]) -> float:
    """Slope of log rms against log t over findings with t ≥ 1; nan if there are fewer than two."""
    x = torch.tensor([math.log(f.t) for f in findings if f.t >= 1])
    y = torch.tensor([math.log(max(f.rms, 1e-300)) for f in findings if f.t >= 1])
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def verdict(agent: Agent, found: dict[str, list[Finding]], orders: dict[str, float | None]) -> list[tuple[bool, str]]:
    """Judge each claim of an agent.

    Args:
        agent: the agent.
        found: the findings of `bias`, by problem.
        orders: the result of `order`, by problem.

    Returns:
        (whether the claim holds, a sentence) for each claim; for an agent without claims, a sentence about the measured error.
    """
    worst = max(f.z for findings in found.values() for f in findings)
    seen = f"largest mean error {worst:.1f} standard errors"
    claims: list[tuple[bool, str]] = []
    if getattr(agent, "unbiased", None):
        holds = worst < LIMIT
        claims.append((holds, f"claims to be unbiased: {seen}, {'below' if holds else 'above'} {LIMIT}"))
    else:
        claims.append((True, f"does not claim to be unbiased: {seen}"))
    claimed = getattr(agent, "order", None)
    for name, measured in orders.items():
        if claimed is not None and measured is not None:
            holds = measured > claimed - 0.25
            claims.append(
                (holds, f"claims an error of order {claimed} in the step: order {measured:.2f} without noise on {name}")
            )
    return claims
