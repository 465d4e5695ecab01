"""Metropolis-Hastings (Hastings 1970) on finished objects, the MCMC baseline of Bengio et al. (NeurIPS 2021).

the first iteration: build x by uniform valid moves
for each of the n chains of a seed, in each iteration:
    x' ~ q(·|x),  a single-site move of the environment
    x <- x' with probability min(1, R(x') q(x|x') / (R(x) q(x'|x)))
    record x, moved or not

Differs from the paper: chains begin at objects that uniform moves build, not at the source, which need not be an object.
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

PROPOSAL, ACCEPTANCE = 0, 1  # streams of an iteration


def log_acceptance(log_reward: Tensor, proposed: Tensor, log_ratio: Tensor) -> Tensor:
    """log min(1, R(x') q(x|x') / (R(x) q(x'|x))), elementwise, from log R(x), log R(x') and log q(x|x')/q(x'|x)."""
    return (proposed - log_reward + log_ratio).clamp_max(0.0)


class Chains(NamedTuple):
    """Where the chains stand: objects [S·n, *obs], log_reward [S·n]; recorded: iterations so far, 0 before they have begun."""

    objects: Tensor
    log_reward: Tensor
    recorded: int


@dataclass(frozen=True)
class Metropolis:
    """Metropolis-Hastings on finished objects, rejections counted.

    Needs an environment with propose(obs [M, *obs], rng) -> (x' [M, *obs], log q(x|x') - log q(x'|x) [M]).
    """

    def init(self, problem: DagProblem) -> Chains:
        """Raises ValueError when the environment offers no moves between objects."""
        if not offers(problem.env, Proposes):
            raise ValueError(
                f"{type(problem.env).__name__} offers no moves between objects, which Metropolis makes: "
                "give it propose(obs, rng) -> (proposed obs, log q(x|x') - log q(x'|x))"
            )
        rng = problem.rng(INIT).spawn(problem.batch_size).drawn(1, problem.env.backend == "numpy")
        source = to_tensor(problem.env.reset(len(rng), rng).obs)
        return Chains(source, torch.zeros(len(rng), dtype=torch.float64, device=problem.device), 0)

    def step(self, state: Chains, problem: DagProblem, t: int) -> tuple[Chains, Outcome]:
        chains, accepted = moved(state, problem, t) if state.recorded else begun(problem, t)
        # chains that stayed are recorded again: the code of 2021 records accepted moves only, and so samples R(x) a(x), with
        # a(x) the mean acceptance from x
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
    """Chains at objects that uniform moves build, all of them [S·n] accepted."""
    tau = problem.play(UniformActions(), problem.rng(ITERATION, t).fold(PROPOSAL))
    assert tau.last is not None
    return Chains(tau.last, problem.env.log_reward(tau.last), 1), torch.ones_like(tau.terminated)


def moved(chains: Chains, problem: DagProblem, t: int) -> tuple[Chains, Tensor]:
    """One move of each chain, and which of them [S·n] were accepted."""
    env: Any = problem.env
    rng = problem.rng(ITERATION, t)
    rng.dtype = torch.float64  # a uniform number in float32 is never below 6e-8, and ratios of rewards can be
    keys = rng.spawn(problem.batch_size)
    proposed, log_ratio = env.propose(chains.objects, keys.fold(PROPOSAL))
    log_reward = env.log_reward(proposed)
    accept = keys.fold(ACCEPTANCE).uniform().log() < log_acceptance(chains.log_reward, log_reward, log_ratio)
    objects = torch.where(accept.view(-1, *(1,) * (proposed.dim() - 1)), proposed, chains.objects)
    return Chains(objects, torch.where(accept, log_reward, chains.log_reward), chains.recorded + 1), accept
