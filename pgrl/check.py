"""Tests the claims of an agent (`unbiased`, `order`) on small MDPs whose gradients are known exactly.

With the bias b_t = E[d_t - ∇J_H(θ_t)], over all randomness up to iteration t:

    start      b_0 = 0, for every agent
    bias       b_t = 0, for an agent that claims to be unbiased
    order      ‖b_t‖ is of this order in the step size; None: without noise b_t = 0
    estimates  E[d_t | history] is the d_t of exact gradients, for an agent that does not claim to be unbiased
    sampling   b_0 or b_t as above, estimated on larger problems

The first four are exact: sums over all outcomes in tiny MDPs (`pgrl.enumeration`), in which a right agent leaves rounding.
Sampling is the second line, for what these do not reach: more iterations, larger batches, thresholds. Thousands of replicas
start at the same θ_0 with different random numbers.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.core import LearnerFault
from envs.mdp.exact import Exact, ExactMDP, gradient
from envs.mdp.tabular import garnet, gridworld
from pgrl.agent import Agent
from pgrl.enumeration import (
    FewerNodes,
    NoiseFree,
    NotEnumerable,
    Outcomes,
    ReadsTrajectories,
    TinyMDP,
    called,
    enumerated,
    iteration,
    started,
    stepped,
    tiny_mdps,
)
from pgrl.policy import policy_for
from pgrl.problem import Problem

EXACT = 1e-9  # of the gradient's norm; rounding is 1e-15, and the least of the wrong variants in the tests 1e-5
LIMIT = 5.0  # standard errors; among the few hundred means of a check, chance exceeds it once in thousands of checks
MOVE = 0.75  # length of the first step in tiny MDPs, ‖θ_1 - θ_0‖
SMALL_MOVES = (1e-3, 5e-4)  # the same to measure an order


@dataclass(frozen=True)
class Claim:
    """One claim of an agent, tested.

    line      start, bias, order, estimates or sampling
    holds     whether it holds; None: it could not be tested
    size      what was measured: a fraction of the gradient's norm, an order, or standard errors
    sentence  the same for people
    """

    line: str
    holds: bool | None
    size: float
    sentence: str


def verdict(agent: Agent, found: dict[str, list[Finding]] | None = None) -> list[Claim]:
    """Test each claim of an agent.

    Args:
        agent: the agent.
        found: findings of `bias`, by problem; None: the exact lines only.

    Raises:
        LearnerFault: the agent raises, or breaks its protocol.
    """
    unbiased, order = bool(_declared(agent, "unbiased", False)), _declared(agent, "order", 0)
    exact = exact_bias(agent)
    claims = [_exact_claim("start", "must start without bias (d_0)", exact, slice(1))]
    if unbiased:
        claims.append(_exact_claim("bias", "claims no bias at t > 0", exact, slice(1, None)))
    elif found_biases := called(lambda: getattr(agent, "biases", ()), "biases"):
        why = f"cannot be tested, because {' and '.join(found_biases)} makes it biased"
        claims.append(Claim("estimates", None, math.nan, f"must take the mean of its estimates: {why}"))
    else:
        claims.append(_estimates(agent))
    if not unbiased:
        claims += [_noise_free(agent)] if order is None else [_of_order(agent, order)] if order else []
    return claims if found is None else [*claims, _sampled(found, unbiased)]


def _declared(agent: Agent, name: str, default: Any) -> Any:
    try:
        inspect.getattr_static(agent, name)
    except AttributeError:
        return default  # it claims nothing
    value = called(lambda: getattr(agent, name), name)
    if value is not None and not isinstance(value, int):
        raise LearnerFault(f"has {name} = {value!r}, expected True or False for unbiased, a whole number or None for order")
    return value


@dataclass(frozen=True)
class ExactBias:
    """The bias in one tiny MDP, relative to the gradient: ‖b_t‖/‖E ∇J_H(θ_t)‖ at t = 0, 1, ...

    stopped  why the iteration after the last is not there; empty if enough are
    """

    name: str
    biases: tuple[float, ...]
    stopped: str


def exact_bias(agent: Agent, move: float = MOVE, world: type[Outcomes] = Outcomes) -> list[ExactBias]:
    """Compute the bias in each tiny MDP over all outcomes.

    Args:
        agent: the agent; its `step_size`, if it has one, is replaced.
        move: the longest first step ‖θ_1 - θ_0‖ of all outcomes.
        world: `Outcomes`, or `NoiseFree` for exact gradients.

    Raises:
        LearnerFault: the agent raises, or breaks its protocol.
        ReadsTrajectories: in `NoiseFree`, the agent reads trajectories.
    """
    return [_bias_in(mdp, moving(agent, mdp, move), world) for mdp in tiny_mdps()]


def _bias_in(mdp: TinyMDP, agent: Agent, world: type[Outcomes]) -> ExactBias:
    biases, stopped = [], ""
    smooth = True
    try:
        for here in enumerated(agent, mdp, world):
            truth = mdp.gradient(here.before.theta)
            size = float((here.history @ (here.mean_d - truth)).norm() / (here.history @ truth).norm())
            biases.append(size if math.isfinite(size) else math.inf)
            smooth = smooth and "uniform" not in here.world.kinds
    except NotEnumerable as reason:
        stopped = str(reason)
    if world is Outcomes and not smooth and max(biases) > EXACT:  # a bias, or a jump in q
        for t, other in enumerate(_bias_in(mdp, agent, FewerNodes).biases):
            if t < len(biases) and abs(other - biases[t]) > 0.01 * max(biases[t], EXACT):
                return ExactBias(mdp.name, tuple(biases[:t]), "its direction is no smooth function of world.uniform()")
    return ExactBias(mdp.name, tuple(biases), stopped)


def moving(agent: Agent, mdp: TinyMDP, move: float) -> Agent:
    """The agent with the step size at which the longest first step is `move`; as it is if it has no such hyperparameter."""
    if not dataclasses.is_dataclass(agent) or "step_size" not in {f.name for f in dataclasses.fields(agent)}:
        return agent
    step: float = agent.step_size
    try:
        (first,) = enumerated(agent, mdp, iterations=1)
    except NotEnumerable:
        return agent
    longest = float((first.after.theta - mdp.theta).norm(dim=1).max())
    if not 0 < longest < math.inf:
        return agent
    try:
        return dataclasses.replace(agent, step_size=step * move / longest)
    except ValueError:
        return agent


def order(agent: Agent) -> float | None:
    """Measure the order of the bias in the step size, over all outcomes of tiny MDPs.

    Args:
        agent: the agent, with a hyperparameter `step_size`.

    Returns:
        The smallest exponent p of ‖b_t‖ ~ step^p over t ≥ 1 and all problems; inf if there is no bias; None if it cannot be
        measured.

    Raises:
        LearnerFault: the agent raises, or breaks its protocol.
    """
    large, small = (exact_bias(agent, move) for move in SMALL_MOVES)
    pairs = [pair for a, b in zip(large, small, strict=True) for pair in zip(a.biases[1:], b.biases[1:], strict=False)]
    if not pairs or not hasattr(agent, "step_size"):
        return None
    return min(_exponent(*pair) for pair in pairs)


def _exponent(large: float, small: float) -> float:
    if large < 1e-13:
        return math.inf
    return math.log(large / small) / math.log(SMALL_MOVES[0] / SMALL_MOVES[1]) if math.isfinite(large) and small > 0 else 0.0


def _exact_claim(line: str, what: str, exact: list[ExactBias], when: slice) -> Claim:
    biases = [b for case in exact for b in case.biases[when]]
    if not biases:
        return Claim(line, None, math.nan, f"{what}: cannot be enumerated, because {exact[0].stopped}")
    size = max(biases)
    return Claim(line, size < EXACT, size, f"{what}: {size:.1e} of the gradient over all outcomes, {_than(size, EXACT)}")


def _than(size: float, limit: float) -> str:
    return f"{'below' if size < limit else 'above'} {limit:g}"


def _of_order(agent: Agent, claimed: int) -> Claim:
    measured = order(agent)
    what = f"claims a bias of order {claimed} in the step"
    if measured is None:
        why = "it has no hyperparameter step_size, or too many outcomes"
        return Claim("order", None, math.nan, f"{what}: cannot be measured, because {why}")
    return Claim("order", measured > claimed - 0.25, measured, f"{what}: order {measured:.2f} over all outcomes")


def _noise_free(agent: Agent) -> Claim:
    what = "claims no error without noise (order = None)"
    try:
        return _exact_claim("order", what, exact_bias(agent, world=NoiseFree), slice(1, None))
    except ReadsTrajectories:
        why = "it reads trajectories itself: declare an order, or 0 to claim nothing"
        return Claim("order", None, math.nan, f"{what}: cannot be tested, because {why}")


def _estimates(agent: Agent) -> Claim:
    """Compare E[d_t | history] with the d_t of exact gradients, from the same histories."""
    what, sizes, why = "must take the mean of its estimates", [], ""
    for mdp in tiny_mdps():
        moved = moving(agent, mdp, MOVE)
        try:
            for here in enumerated(moved, mdp, iterations=2):
                if not _points_are_given(here.world, len(here.history)):
                    raise NotEnumerable("it samples at points that depend on other episodes of the iteration")
                exact = iteration(moved, mdp, NoiseFree, here.before, here.history, here.t)
                apart = here.history @ (here.mean_d - exact.mean_d).norm(dim=1)
                size = float(apart / (here.history @ mdp.gradient(here.before.theta)).norm())
                sizes.append(size if math.isfinite(size) else math.inf)
        except NotEnumerable as reason:
            why = str(reason)
        except ReadsTrajectories:
            why = "it reads trajectories itself"
            sizes.clear()
            break
    if not sizes:
        return Claim("estimates", None, math.nan, f"{what}: cannot be tested, because {why}")
    size = max(sizes)
    sentence = f"{what}: {size:.1e} of the gradient from the direction of exact gradients, {_than(size, EXACT)}"
    return Claim("estimates", size < EXACT, size, sentence)


def _points_are_given(world: Outcomes, histories: int) -> bool:
    """Whether the points at which episodes were sampled depend on the history and on q only."""
    episodes = [i for i, kind in enumerate(world.kinds) if kind == "sample"]
    for theta in world.points:
        by_draw = theta.reshape(histories, *world.sizes, -1)
        if any(float((by_draw.amax(1 + i) - by_draw.amin(1 + i)).max()) > 1e-12 for i in episodes):
            return False
    return True


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
    visible   the smallest detectable `fraction` of an error along the mean gradient: LIMIT standard errors
    z         largest |mean|/standard error, over coordinates and along the mean gradient
    rms       root mean square of ‖error‖
    """

    t: int
    fraction: float
    visible: float
    z: float
    rms: float


def check_problems(seeds: int, batch_size: int = 1, seed: int = 0) -> list[CheckProblem]:
    """Make the two problems for sampling: a random MDP and a gridworld with slip, with short horizons, in float64.

    Args:
        seeds: replicas of the agent.
        batch_size: episodes of each replica at each theta it samples.
        seed: each seed gives other random numbers to all replicas.
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
        first = seed * seeds % 2**62
        replicas = tuple(range(first, first + seeds))
        problem = Problem(env, policy, discount, replicas, env.horizon, batch_size)
        made.append(CheckProblem(name, problem, ExactMDP(env, log_pi, discount), theta))
    return made


def bias(agent: Agent, case: CheckProblem, iterations: Sequence[int]) -> list[Finding]:
    """Estimate the bias of an agent's direction over all replicas.

    Args:
        agent: the agent.
        case: a problem from `check_problems`.
        iterations: numbers of iterations, from 0; the agent runs to the largest.

    Returns:
        A finding for each of `iterations`, in ascending order.

    Raises:
        LearnerFault: the agent raises, or breaks its protocol.
    """
    problem = case.problem
    state = started(agent, case.theta.expand(len(problem.seeds), -1))
    found = []
    for t in range(max(iterations) + 1):
        before = state.theta
        state = stepped(agent, state, problem.iteration(t), t)
        if t in iterations:
            truth = gradient(case.exact, before, problem.horizon)
            found.append(_finding(t, state.d.double() - truth, truth.mean(0)))
    return found


def _finding(t: int, error: Tensor, truth: Tensor) -> Finding:
    # along one direction for all replicas: a replica's own gradient depends on the noise in its d_{t-1}
    n, scale = len(error), float(truth.norm())
    seen = torch.cat([error, (error @ truth)[:, None] / max(scale, 1e-300)], 1)
    if not bool(torch.isfinite(seen).all()):  # NaN or infinity fails every claim
        return Finding(t, math.nan, math.nan, math.inf, math.nan)
    mean, standard = seen.mean(0), seen.std(0) / n**0.5
    ok = standard > 1e-12 * scale  # a coordinate without variance is either exact or wrong
    z = torch.where(ok, mean.abs() / standard, torch.where(mean.abs() > 1e-9 * scale, torch.inf, 0.0))
    rms = float(error.pow(2).sum(1).mean().sqrt())
    return Finding(t, float(error.mean(0).norm()) / scale, LIMIT * float(standard[-1]) / scale, float(z.max()), rms)


def _sampled(found: dict[str, list[Finding]], unbiased: bool) -> Claim:
    z = max(f.z for findings in found.values() for f in findings if unbiased or f.t == 0)
    what = "claims no bias" if unbiased else "must start without bias (d_0)"
    return Claim("sampling", z < LIMIT, z, f"{what}, by sampling: {z:.1f} standard errors, {_than(z, LIMIT)}")


def decay(findings: Sequence[Finding]) -> float:
    """Slope of log rms against log t over findings with t ≥ 1; nan if there are fewer than two."""
    x = torch.tensor([math.log(f.t) for f in findings if f.t >= 1])
    y = torch.tensor([math.log(max(f.rms, 1e-300)) for f in findings if f.t >= 1])
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
