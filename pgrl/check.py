"""The oracle as a tool: thousands of replicas of an agent on small worlds whose gradients are known exactly.

bias     every replica starts at the same θ_0 and goes its own random way; the mean over replicas of d_t - ∇J_H(θ_t) is
         0 at every t if the agent is unbiased, whatever it does with d_t
order    without noise (gradients and Hessians exact), d_t - ∇J_H(θ_t) shrinks like step^order as the step does
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

LIMIT = 4.5  # standard errors: over the few hundred means that a check looks at, chance passes it once in hundreds of checks


@dataclass(frozen=True)
class Bench:
    """A small world, its exact values, and where the replicas start, [D]."""

    name: str
    problem: Problem
    exact: Exact
    theta: Tensor


@dataclass(frozen=True)
class Finding:
    """The error d_t - ∇J_H(θ_t) over replicas at iteration t.

    share  ‖mean error‖ / ‖mean gradient‖        visible  the smallest share, along the gradient, that would be seen
    z      largest |mean|/standard error, over coordinates and along the gradient        rms  root mean square of ‖error‖
    """

    t: int
    share: float
    visible: float
    z: float
    rms: float


def benches(seeds: int, batch_size: int = 1) -> list[Bench]:
    """A random MDP and a slippery grid, horizons short enough for many replicas; float64."""
    worlds = [
        ("garnet", garnet(4, 2, 2, seed=3, horizon=6), 0.8),
        ("grid", gridworld("..P\n.#.\n..G", slip=0.2, horizon=8), 0.9),
    ]
    made = []
    for name, env, discount in worlds:
        policy = policy_for(env, dtype=torch.float64)
        states = torch.arange(env.n_states)

        def log_pi(theta: Tensor, policy: Any = policy, states: Tensor = states) -> Tensor:
            return policy.log_probs_at(theta, states)

        theta = torch.randn(policy.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
        problem = Problem(env, policy, discount, tuple(range(seeds)), env.horizon, batch_size)
        made.append(Bench(name, problem, ExactMDP(env, log_pi, discount), theta))
    return made


def bias(agent: Agent, bench: Bench, marks: Sequence[int]) -> list[Finding]:
    """Runs the agent to the last of `marks` and looks at its direction at each of them (iterations, from 0)."""
    problem = bench.problem
    state = agent.init(bench.theta.expand(len(problem.seeds), -1).clone())
    found = []
    for t in range(max(marks) + 1):
        before = state.theta
        state, _ = agent.step(state, problem.iteration(t))
        if t in marks:
            truth = gradient(bench.exact, before, problem.horizon)
            found.append(_finding(t, state.d.double() - truth, truth))
    return found


def _finding(t: int, error: Tensor, truth: Tensor) -> Finding:
    n, scale = len(error), float(truth.mean(0).norm())
    along = (error * truth).sum(1, keepdim=True) / truth.norm(dim=1, keepdim=True).clamp_min(1e-300)
    seen = torch.cat([error, along], 1)
    if not bool(torch.isfinite(seen).all()):  # no claim is kept by numbers that are none
        return Finding(t, math.nan, math.nan, math.inf, math.nan)
    mean, standard = seen.mean(0), seen.std(0) / n**0.5
    ok = standard > 1e-12 * scale  # a coordinate without spread: exact, or wrong without noise
    z = torch.where(ok, mean.abs() / standard, torch.where(mean.abs() > 1e-9 * scale, torch.inf, 0.0))
    rms = float(error.pow(2).sum(1).mean().sqrt())
    return Finding(t, float(error.mean(0).norm()) / scale, LIMIT * float(standard[-1]) / scale, float(z.max()), rms)


class NoiseFree:
    """A `World` whose gradients and Hessian-vector products are the exact ones; "trajectories" are the points themselves."""

    def __init__(self, bench: Bench, t: int, seeds: int) -> None:
        self._exact, self._horizon = bench.exact, bench.problem.horizon
        self.policy, self.discount = bench.problem.policy, bench.problem.discount
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


def order(agent: Agent, bench: Bench, iterations: int = 12, seeds: int = 64) -> float | None:
    """The exponent with which the noise-free error shrinks with the agent's `step_size`; inf where there is no error.

    None when the agent has no knob `step_size`, or reads trajectories itself so that there is nothing to make noise-free.
    """
    if not dataclasses.is_dataclass(agent) or not hasattr(agent, "step_size"):
        return None
    steps, errors = (0.04, 0.02, 0.01), []
    for step in steps:
        small: Any = dataclasses.replace(agent, step_size=step)
        state = small.init(bench.theta.expand(seeds, -1).clone())
        try:
            for t in range(iterations):
                before = state.theta
                state, _ = small.step(state, NoiseFree(bench, t, seeds))
        except (AttributeError, TypeError):
            return None
        truth = gradient(bench.exact, before, bench.problem.horizon)
        errors.append(float((state.d - truth).mean(0).norm() / truth.norm(dim=1).mean()))
    if max(errors) < 1e-10:
        return math.inf
    return math.log(errors[0] / errors[-1]) / math.log(steps[0] / steps[-1])


def decay(findings: Sequence[Finding]) -> float:
    """Slope of log rms against log t, over t ≥ 1; nan where fewer than two are known."""
    x = torch.tensor([math.log(f.t) for f in findings if f.t >= 1])
    y = torch.tensor([math.log(max(f.rms, 1e-300)) for f in findings if f.t >= 1])
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def verdict(agent: Agent, found: dict[str, list[Finding]], orders: dict[str, float | None]) -> list[tuple[bool, str]]:
    """(kept, sentence) for each claim of the agent; an agent that claims nothing is told what was seen."""
    worst = max(f.z for findings in found.values() for f in findings)
    seen = f"largest mean error {worst:.1f} standard errors"
    claims: list[tuple[bool, str]] = []
    if getattr(agent, "unbiased", None):
        kept = worst < LIMIT
        claims.append((kept, f"claims to be unbiased: {seen}, {'below' if kept else 'above'} {LIMIT}"))
    else:
        claims.append((True, f"does not claim to be unbiased: {seen}"))
    claimed = getattr(agent, "order", None)
    for name, measured in orders.items():
        if claimed is not None and measured is not None:
            kept = measured > claimed - 0.25
            claims.append(
                (kept, f"claims an error of order {claimed} in the step: order {measured:.2f} without noise on {name}")
            )
    return claims
