"""The distribution p(x) of a method's objects: exact if all states or all ancestors can be listed, else importance sampling.

exact   u(s') = Σ_s u(s) P_F(s'|s) through the DAG, or through the ancestors of some objects; heads averaged
log p   τ_1 .. τ_m ~ P_B(·|x), uniform over edges;  log p^(x) = log mean_i  P_F(τ_i) / P_B(τ_i|x)

p^ is unbiased; log p^ is too small by about half the relative variance of p^.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from envs.dag.ancestry import Ancestry, ancestry
from envs.dag.backward import edges_in, sample_backward, valid_actions_at
from envs.dag.enumeration import Enumeration
from envs.random import Rng
from gflownet.flows.states import distinct, key_of, states_after
from gflownet.problem import DagProblem, EvaluatesActions, Method

ROWS = 1 << 17  # states of all seeds together in one forward pass
OBJECTS = 512  # objects whose ancestors are listed at once


@torch.no_grad()
def exact_distribution(method: Method, state: Any, problem: DagProblem, dag: Enumeration) -> Tensor:
    """Compute the exact distribution of finished objects over an enumerated DAG.

    Args:
        method: the method.
        state: its state.
        problem: the problem.
        dag: the enumeration of `problem.env`.

    Returns:
        [S, K] float64, averaged over heads.

    Raises:
        ValueError: the method has no policy.
    """
    return dag.terminal_distribution(_log_pf(method, state, problem, dag.obs, dag.action_mask)).mean(0)


@torch.no_grad()
def exact_log_p(method: Method, state: Any, problem: DagProblem, obs: Tensor) -> Tensor:
    """Compute the exact log p(x) of objects by dynamic programming over all their ancestors.

    Args:
        method: the method.
        state: its state.
        problem: the problem; its environment has `few_ancestors`.
        obs: the objects, [M, *obs].

    Returns:
        [S, M] float64, averaged over heads.

    Raises:
        ValueError: the method has no policy.
    """
    parts = []
    for lo in range(0, len(obs), OBJECTS):
        past = ancestry(problem.env, obs[lo : lo + OBJECTS])
        edge = _edge_log_pf(method, state, problem, past)
        parts.append(past.probabilities(edge).mean(0))  # an episode is sampled from one head
    return torch.cat(parts, 1).log()


def _edge_log_pf(method: Method, state: Any, problem: DagProblem, past: Ancestry) -> Tensor:
    """log P_F of all edges, [heads, S, E], in chunks of states."""
    order = past.parent.argsort(stable=True)
    rows = max(1, ROWS // (len(problem.seeds) * 16))
    found: list[Tensor] = []
    for lo in range(0, len(past.obs), rows):
        some = past.obs[lo : lo + rows]
        e = order[torch.searchsorted(past.parent[order], lo) : torch.searchsorted(past.parent[order], lo + len(some))]
        if len(e):
            valid, row, action = valid_actions_at(problem.env, some), past.parent[e] - lo, past.action[e]
            if isinstance(method, EvaluatesActions):
                found.append(method.log_pf_of(state, problem, some, valid, row, action))
            else:
                found.append(_log_pf(method, state, problem, some, valid)[..., row, action])
    edge = torch.cat(found, -1)
    return torch.empty_like(edge).index_copy_(-1, order, edge)


@torch.no_grad()
def log_p(method: Method, state: Any, problem: DagProblem, obs: Tensor, m: int, rng: Rng) -> Tensor:
    """Estimate log p(x) of objects by importance sampling with backward trajectories.

    Args:
        method: the method.
        state: its state.
        problem: the problem.
        obs: the objects, [M, *obs].
        m: backward trajectories of each object.
        rng: M random keys; all seeds use the same trajectories.

    Returns:
        [S, M] float64.

    Raises:
        ValueError: the method has no policy.
    """
    env = problem.env
    tau = sample_backward(env, obs.repeat_interleave(m, 0), rng.spawn(m))
    assert tau.action_mask is not None
    edges = edges_in(env, *states_after(tau)).sum(1).clamp_min(1)
    log_pb = -torch.where(tau.mask, edges.view(tau.mask.shape).double().log(), 0.0).sum(0)

    visits = tau.mask.flatten().nonzero()[:, 0]
    seen, (key, n_keys) = tau.obs.flatten(0, 1)[visits], key_of(env)
    states = distinct(key(seen), None, 1, n_keys)
    policy = _log_pf(method, state, problem, seen[states.first], tau.action_mask.flatten(0, 1)[visits][states.first])
    taken = policy[..., states.row, tau.action.flatten()[visits]].double()
    episode = visits % tau.mask.shape[1]
    log_pf = torch.zeros(*taken.shape[:2], tau.mask.shape[1], dtype=torch.float64, device=obs.device)
    log_pf = log_pf.index_add(2, episode, taken)  # [heads, S, M·m]
    log_pf = log_pf.logsumexp(0) - math.log(len(log_pf))  # an episode is sampled from one head
    return (log_pf - log_pb).view(len(log_pf), -1, m).logsumexp(2) - math.log(m)


def _log_pf(method: Method, state: Any, problem: DagProblem, obs: Tensor, valid: Tensor) -> Tensor:
    """log P_F, [heads, S, M, A], in chunks of states."""
    rows, parts = max(1, ROWS // len(problem.seeds)), []
    for lo in range(0, len(obs), rows):
        part = method.log_pf(state, problem, obs[lo : lo + rows], valid[lo : lo + rows])
        if part is None:
            raise ValueError(f"{type(method).__name__} has no policy: use the distribution of its visited objects instead")
        parts.append(part)
    return torch.cat(parts, 2)
