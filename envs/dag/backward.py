"""Backward sampling in a DAG: trajectories from finished objects to the source, by a backward policy.

    until all are at the source:   count the edges into each state by action;  a ~ counts · exp(logits);  go to that parent

The result is `Trajectories` in forward time, as if they had been sampled forwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.core import DagEnv, Trajectories
from envs.dag.protocols import CountsEdges, offers
from envs.random import Rng

BackwardLogits = Callable[[Tensor], Tensor]  # observations [B, *obs] -> [B, A], a logit for each action as the last one


def edges_in(env: Any, obs: Tensor, ended: Tensor) -> Tensor:
    """Number of edges into each state by action, [M, A] int64, for states obs [M, *obs], ended [M]."""
    if offers(env, CountsEdges):
        return env.edges_in(obs, ended).long()
    parents, A = env.parents(obs, ended), int(env.action_space.n)
    return torch.bincount(parents.child * A + parents.action, minlength=len(obs) * A).view(len(obs), A)


def valid_actions_at(env: Any, obs: Tensor) -> Tensor:
    """Valid actions, [M, A] bool, of states obs [M, *obs] that have not ended."""
    ended = torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
    if env.backend == "numpy":
        return torch.from_numpy(env.state_at(obs.numpy(), ended.numpy()).action_mask)
    mask: Tensor = env.state_at(obs, ended).action_mask
    return mask


@torch.no_grad()
def sample_backward(env: DagEnv, obs: Tensor, rng: Rng, logits: BackwardLogits | None = None) -> Trajectories:
    """Sample one trajectory from the source to each of B finished objects.

    Args:
        env: the environment.
        obs: the objects, [B, *obs].
        rng: B random keys.
        logits: of the backward policy; None: uniform over the edges into a state.

    Returns:
        Trajectories [T, B] in forward time that end at the objects.

    Raises:
        ValueError: a path is longer than the environment's horizon.
    """
    B, here, ended = len(obs), obs, torch.ones(len(obs), dtype=torch.bool, device=obs.device)
    at_source = torch.zeros_like(ended)
    noise = rng.drawn(min(64, env.horizon + 1), numpy=False)
    states: list[Tensor] = []
    actions: list[Tensor] = []
    moved: list[Tensor] = []
    for t in range(env.horizon + 1):
        counts = edges_in(env, here, ended)
        at_source = at_source | (counts.sum(1) == 0)
        if bool(at_source.all()):
            break
        if t == env.horizon:
            raise ValueError(f"a path to {obs[~at_source][0].tolist()} is longer than the horizon of {env.horizon} steps")
        uniform = noise.at(t).uniform(2)
        scores = torch.zeros(counts.shape, dtype=uniform.dtype, device=obs.device) if logits is None else logits(here)
        weight = torch.where(counts > 0, scores + counts.clamp_min(1).log(), -torch.inf)
        cdf = torch.softmax(torch.where(at_source[:, None], 0.0, weight), 1).cumsum(1)
        action = (cdf < uniform[:, :1] * cdf[:, -1:]).sum(1)
        nth = (uniform[:, 1] * counts.gather(1, action[:, None])[:, 0]).long()  # among the edges with this action
        moving = (~at_source).nonzero()[:, 0]
        parents = env.parents(here[moving], ended[moving])
        hit = (parents.action == action[moving][parents.child]).nonzero()[:, 0]
        order = torch.argsort(parents.child[hit], stable=True)
        child, hit = parents.child[hit][order], hit[order]
        rank = torch.arange(len(child), device=obs.device) - torch.searchsorted(child, child)
        chosen = hit[rank == nth[moving][child]]
        here = here.index_copy(0, moving[parents.child[chosen]], parents.obs[chosen])
        ended = torch.zeros_like(ended)
        states.append(here)
        actions.append(torch.where(at_source, 0, action))
        moved.append(~at_source)
    return _forward_in_time(env, obs, torch.stack(states), torch.stack(actions), torch.stack(moved), B)


def _forward_in_time(env: Any, last: Tensor, states: Tensor, actions: Tensor, moved: Tensor, B: int) -> Trajectories:
    """Reverse the time: step t of a path of length L is backward step L-1-t; after the end `obs` is the object."""
    T, length = len(moved), moved.sum(0)
    times = torch.arange(T, device=last.device)[:, None]
    back = (length - 1 - times).clamp_min(0)
    mask, columns = times < length, torch.arange(B, device=last.device)
    shape = (T, B) + (1,) * (last.dim() - 1)
    obs = torch.where(mask.view(shape), states[back, columns], last)
    valid = valid_actions_at(env, obs.flatten(0, 1)).view(T, B, -1)
    return Trajectories(
        obs=obs,
        action=torch.where(mask, actions[back, columns], 0),
        reward=torch.zeros(T, B, device=last.device),
        mask=mask,
        terminated=torch.ones(B, dtype=torch.bool, device=last.device),
        truncated=torch.zeros(B, dtype=torch.bool, device=last.device),
        action_mask=valid,
        last=last,
    )
