"""Metropolis-Hastings (Hastings 1970) on finished objects, the MCMC baseline of Bengio et al. (NeurIPS 2021).

in the first iteration: construct x by uniform valid actions
for each of the n chains of a seed, in each iteration:
    x' ~ q(·|x),  a single-site proposal of the environment
    x <- x' with probability min(1, R(x') q(x|x') / (R(x) q(x'|x)))
    record x, whether x' was accepted or not

Differs from the paper: chains start at objects that uniform actions construct, not at the source, which may be no object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import to_tensor
from envs.dag.protocols import Proposes, offers
from gflownet.baselines.uniform import UniformActions
from gflownet.problem import INIT, ITERATION, DagProblem, Metrics, Outcome

PROPOSAL, ACCEPTANCE = 0, 1  # random streams of an iteration


def log_acceptance(log_reward: Tensor, proposed: Tensor, log_ratio: Tensor) -> Tensor:
    """log min(1, R(x') q(x|x') / (R(x) q(x'|x))), elementwise, from log R(x), log R(x') and log q(x|x')/q(x'|x)."""
    return (proposed - log_reward + log_ratio).clamp_max(0.0)


class Chains(NamedTuple):
    """The states of the chains: objects [S·n, *obs], log_reward [S·n]; recorded: iterations so far, 0 before the start."""

    objects: Tensor
    log_reward: Tensor
    recorded: int


@dataclass(frozen=True)
class Metropolis:
    """Metropolis-Hastings on finished objects, rejections counted.

    Needs an environment with propose(obs [M, *obs], rng) -> (x' [M, *obs], log q(x|x') - log q(x'|x) [M]).
    """

    def init(self, problem: DagProblem) -> Chains:
        """Make the state before the first iteration.

        Raises:
            ValueError: the environment has no `propose`.
        """
        if not offers(problem.env, Proposes):
            raise ValueError(
                f"{type(problem.env).__name__} has no proposals between objects, which Metropolis needs: "
                "give it propose(obs, rng) -> (proposed obs, log q(x|x') - log q(x'|x))"
            )
        rng = problem.rng(INIT).spawn(problem.batch_size).drawn(1, problem.env.backend == "numpy")
        source = to_tensor(problem.env.reset(len(rng), rng).obs)
        return Chains(source, torch.zeros(len(rng), dtype=torch.float64, device=problem.device), 0)

    def step(self, state: Chains, problem: DagProblem, t: int) -> tuple[Chains, Outcome]:
        chains, accepted = moved(state, problem, t) if state.recorded else begun(problem, t)
        # rejections are recorded again; the code of 2021 records accepted proposals only, and so samples R(x) a(x), with
        # a(x) the mean acceptance rate at x
        objects, rewards = problem.by_seed(chains.objects), problem.by_seed(chains.log_reward)
        metrics: Metrics = {
            "train/acceptance": problem.by_seed(accepted).double().mean(1),
            "rollout/log_reward": rewards.mean(1),
        }
        return chains, Outcome(objects, rewards, metrics)

    def log_pf(self, state: Chains, problem: DagProblem, obs: Tensor, valid: Tensor) -> None:
        return None

    def log_z(self, state: Chains) -> None:
        return None


def begun(problem: DagProblem, t: int) -> tuple[Chains, Tensor]:
    """Start chains at objects that uniform actions construct; the second result is True for all [S·n]."""
    tau = problem.play(UniformActions(), problem.rng(ITERATION, t).fold(PROPOSAL))
    assert tau.last is not None
    return Chains(tau.last, problem.log_reward(tau.last), 1), torch.ones_like(tau.terminated)


def moved(chains: Chains, problem: DagProblem, t: int) -> tuple[Chains, Tensor]:
    """One proposal for each chain; the second result is which were accepted, [S·n] bool."""
    env: Any = problem.env
    rng = problem.rng(ITERATION, t)
    rng.dtype = torch.float64  # a uniform number in float32 is at least 6e-8, but ratios of rewards can be smaller
    keys = rng.spawn(problem.batch_size)
    proposed, log_ratio = env.propose(chains.objects, keys.fold(PROPOSAL))
    log_reward = problem.log_reward(proposed)
    accept = keys.fold(ACCEPTANCE).uniform().log() < log_acceptance(chains.log_reward, log_reward, log_ratio)
    objects = torch.where(accept.view(-1, *(1,) * (proposed.dim() - 1)), proposed, chains.objects)
    return Chains(objects, torch.where(accept, log_reward, chains.log_reward), chains.recorded + 1), accept
