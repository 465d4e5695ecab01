"""`local_search`: local search from the objects of a batch (Kim et al. 2024, "LS-GFN", 2310.02710).

    for each round:   sample a path to x by P_B;  remove its last K steps;  reconstruct x' by P_F
                      accept x' if R(x') > R(x)                                                                    (better)
                      or with probability min(1, R(x') P_B(x' -> s) P_F(s -> x) / (R(x) P_B(x -> s) P_F(s -> x')))  (metropolis)

Differs from the paper: `metropolis` rejects an x' whose reconstructed part is not K steps long, because the reverse move, which
removes K steps of x', would not lead to s. So a round leaves the distribution ∝ R invariant. With a maxent P_B the uniform one
is used for sampling; the distribution is invariant for any P_B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from envs.core import Trajectories
from envs.dag.backward import BackwardLogits, sample_backward
from envs.random import Rng
from gflownet.flows.flows import Flows
from gflownet.model import Model
from gflownet.problem import DagProblem
from gflownet.sampling.replay import replayed
from gflownet.sampling.sampler import sampler


@dataclass(frozen=True)
class LocalSearch:
    """Parameters of local search.

    Args:
        rounds: rounds in an iteration; 0: no local search.
        depth: fraction of a path that is removed, in (0, 1].
        accept: better or metropolis.

    Raises:
        ValueError: an argument is out of range.
    """

    rounds: int = 0
    depth: float = 0.5
    accept: Literal["better", "metropolis"] = "better"

    def __post_init__(self) -> None:
        if self.rounds < 0 or not 0 < self.depth <= 1 or self.accept not in ("better", "metropolis"):
            raise ValueError(
                f"rounds is {self.rounds}, depth {self.depth}, accept {self.accept!r}: expected rounds >= 0, "
                "0 < depth <= 1 and better or metropolis"
            )


@torch.no_grad()
def local_search(
    problem: DagProblem,
    model: Model,
    theta: Tensor,
    tau: Trajectories,
    log_reward: Tensor,
    search: LocalSearch,
    backward: str,
    rng: Rng,
) -> tuple[Trajectories, Tensor, Tensor, Tensor]:
    """Run the rounds of local search.

    Args:
        problem: the problem.
        model: the network and its heads.
        theta: [S, D].
        tau: [T, S·n], trajectories to the initial objects.
        log_reward: [S·n], of the initial objects.
        search: the parameters.
        backward: the backward policy, as in `Flows`.
        rng: one key for each seed.

    Returns:
        Trajectories to the accepted objects [T, S·n], their log-rewards [S·n], all reconstructed objects [rounds, S·n, *obs]
        and their log-rewards [rounds, S·n].
    """
    n, env = tau.mask.shape[1] // len(theta), problem.env
    backward = "uniform" if backward == "maxent" else backward  # paths must be sampled by the P_B of the ratio
    built, rewards = [], []
    for k in range(search.rounds):
        keys = rng.fold(k)
        assert tau.last is not None
        path = sample_backward(env, tau.last, keys.fold(0).spawn(n), _backward_logits(model, theta, backward))
        length = path.mask.sum(0)
        kept = length - (length * search.depth).ceil().long()  # steps that are not removed
        start, unfinished = path.obs[kept, torch.arange(len(kept), device=kept.device)], torch.zeros_like(tau.terminated)
        on_cpu = env.backend == "numpy"
        state = env.state_at(*((start.numpy(), unfinished.numpy()) if on_cpu else (start, unfinished)))
        rebuilt = problem.play(sampler(env, model, theta, n), keys.fold(1), n, start=state)
        proposal = replayed(problem, _spliced(path, kept, rebuilt, env.horizon))
        assert proposal.last is not None
        new = problem.log_reward(proposal.last)
        built.append(proposal.last)
        rewards.append(new)
        if search.accept == "better":
            accept = new > log_reward
        else:
            tau = path
            ratio = _log_ratio(problem, model, theta, proposal, new, backward)
            ratio = ratio - _log_ratio(problem, model, theta, path, log_reward, backward)
            u = keys.fold(2).spawn(n).uniform()
            accept = (u.log() < ratio) & (rebuilt.mask.sum(0) == length - kept)
        actions = torch.where(accept, _padded(proposal.action, env.horizon), _padded(tau.action, env.horizon))
        tau, log_reward = replayed(problem, actions), torch.where(accept, new, log_reward)
    return tau, log_reward, torch.stack(built), torch.stack(rewards)


def _backward_logits(model: Model, theta: Tensor, backward: str) -> BackwardLogits | None:
    if backward not in ("learned", "tlm"):
        return None
    S = len(theta)
    return lambda obs: model.backward_logits(model.outputs(theta, obs.view(S, -1, *obs.shape[1:]))).flatten(0, 1)


def _spliced(path: Trajectories, kept: Tensor, rebuilt: Trajectories, horizon: int) -> Tensor:
    """Actions [horizon, B]: the first `kept` of the path, then those of the reconstructed part."""
    times = torch.arange(horizon, device=kept.device)[:, None]
    later = (times - kept).clamp(0, len(rebuilt.action) - 1)
    return torch.where(times < kept, _padded(path.action, horizon), rebuilt.action.gather(0, later))


def _padded(action: Tensor, horizon: int) -> Tensor:
    return torch.cat([action, action.new_zeros(horizon - len(action), action.shape[1])])


def _log_ratio(
    problem: DagProblem, model: Model, theta: Tensor, tau: Trajectories, log_reward: Tensor, backward: str
) -> Tensor:
    """log R(x) P_B(τ|x) / P_F(τ), [S·n]; in a difference of two paths, their common beginning cancels."""
    flows = Flows(problem.env, model, theta, tau, log_reward, backward=backward)
    return (flows.log_reward + flows.log_pb.sum(0) - flows.log_pf.sum(0)).flatten()
