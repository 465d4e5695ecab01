"""`enumerate_dag`: all states and edges of a small DAG, with exact flows and terminal distributions, in float64.

    search   breadth first from the source: all valid actions of a whole level are stepped as one batch
    sort     by level, the length of the longest path to a state, so that every edge leads to a higher level
    visits   u(source) = 1,  u(s') = Σ_{s -> s'} u(s) P_F(s' | s);  the terminal distribution is u at finished objects
    flow     F(x) = R(x),  F(s -> s') = F(s') P_B(s | s'),  F(s) = Σ_{s'} F(s -> s')   (Bengio et al., 2106.04399, 2111.09266)

Each is one pass over the levels. Every objective is 0 at the exact flow; R/Z is the target distribution of a sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from envs.core import DagEnv
from envs.dag.protocols import Indexed, Keyed, offers
from envs.dag.search import Graph, KeyOf, TooManyStates, differ, hash_key, search
from envs.dag.segments import segment_logsumexp


@dataclass(frozen=True)
class ExactFlow:
    """The flow that a backward policy and the rewards determine; all are logs, float64.

    log_flow       [N]     log F(s): log R at finished objects, log Z at the source
    log_edge_flow  [E]     log F(s -> s')
    log_pf         [N, A]  log F(s -> s') - log F(s), -inf where there is no edge (so at all finished states)
    """

    log_flow: Tensor
    log_edge_flow: Tensor
    log_pf: Tensor


@dataclass(frozen=True)
class Enumeration:
    """All N states and E edges. States are sorted by level, the source is row 0; edges are sorted by child.

    obs          [N, *obs]
    terminated   [N] bool
    level        [N]          length of the longest path from the source
    action_mask  [N, A] bool  of the environment (without meaning for a finished state)
    parent, action, child  [E]  rows of states, and actions
    objects      [K]          rows of the finished objects, ascending
    log_reward   [K] float64
    key_of       identifies states, for `find`
    """

    obs: Tensor
    terminated: Tensor
    level: Tensor
    action_mask: Tensor
    parent: Tensor
    action: Tensor
    child: Tensor
    objects: Tensor
    log_reward: Tensor
    key_of: KeyOf

    def __len__(self) -> int:
        return len(self.obs)

    @cached_property
    def log_z(self) -> float:
        """log Z = log Σ R(x)."""
        return float(self.log_reward.logsumexp(0))

    @cached_property
    def target(self) -> Tensor:
        """The target distribution R/Z, [K] float64."""
        return (self.log_reward - self.log_z).exp()

    # -- from states to rows

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor]:
        keys, rows = self.key_of(self.obs, self.terminated).sort()
        return keys, rows

    def find(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """The rows of states obs [M, *obs], terminated [M]; [M] int64.

        Raises:
            ValueError: a state cannot be reached.
        """
        obs, terminated = obs.to(self.obs.device), terminated.to(self.obs.device)
        keys, rows = self._numbers
        found = rows[torch.searchsorted(keys, self.key_of(obs, terminated)).clamp(max=len(keys) - 1)]
        strange = differ(self.obs[found], obs) | (self.terminated[found] != terminated)
        if bool(strange.any()):
            at = int(strange.nonzero()[0])
            what = "finished" if terminated[at] else "unfinished"
            raise ValueError(
                f"the {what} state {obs[at].tolist()} is not among the {len(self)} that can be reached: "
                "give states of episodes of this environment"
            )
        return found

    def object_of(self, obs: Tensor) -> Tensor:
        """The indices among the K objects of finished objects obs [M, *obs]; [M] int64.

        Raises:
            ValueError: an object cannot be reached.
        """
        return torch.searchsorted(self.objects, self.find(obs, torch.ones(len(obs), dtype=torch.bool)))

    # -- forwards, level by level

    @cached_property
    def _state_cuts(self) -> list[int]:
        return [0, *self.level.bincount().cumsum(0).tolist()]

    @cached_property
    def _edge_cuts(self) -> list[int]:
        """The index of the first edge into each level."""
        return torch.searchsorted(self.child, torch.tensor(self._state_cuts, device=self.child.device)).tolist()

    def visits_of(self, log_pf: Tensor) -> Tensor:
        """Probability that an episode visits each state, [..., N] float64, under log P_F [..., N, A].

        The probability that a policy gives to invalid actions is lost.

        Raises:
            ValueError: log_pf has another shape.
        """
        n, actions = self.action_mask.shape
        if log_pf.shape[-2:] != (n, actions):
            raise ValueError(f"log_pf has shape {tuple(log_pf.shape)}, expected (..., {n}, {actions}): a row for every state")
        log_p = log_pf.reshape(-1, n * actions).T
        edge = self.parent * actions + self.action
        visits = torch.zeros(n, log_p.shape[1], dtype=torch.float64, device=log_pf.device)
        visits[0] = 1
        for (lo, hi), (first, last) in zip(pairwise(self._state_cuts), pairwise(self._edge_cuts), strict=True):
            e = slice(first, last)
            visits[lo:hi].index_add_(0, self.child[e] - lo, visits[self.parent[e]] * log_p[edge[e]].double().exp())
        return visits.T.reshape(*log_pf.shape[:-2], n)

    def terminal_distribution(self, log_pf: Tensor) -> Tensor:
        """The exact distribution of finished objects, [..., K] float64, under log P_F [..., N, A]."""
        return self.visits_of(log_pf)[..., self.objects]

    def log_paths(self) -> Tensor:
        """Log of the number of paths from the source to each state, [N] float64; parallel edges count separately."""
        paths = torch.zeros(len(self), dtype=torch.float64, device=self.obs.device)
        cuts = zip(pairwise(self._state_cuts), pairwise(self._edge_cuts), strict=True)
        for (lo, hi), (first, last) in list(cuts)[1:]:
            paths[lo:hi] = segment_logsumexp(paths[self.parent[first:last]], self.child[first:last] - lo, hi - lo)
        return paths

    # -- backwards, level by level

    def flow(self, log_pb: Tensor | None = None) -> ExactFlow:
        """The exact flow for a backward policy.

        Args:
            log_pb: [E], log P_B of each edge; None: uniform, 1 / (number of edges into the child).

        Raises:
            ValueError: log_pb has another shape, or P_B over the edges into a state does not sum to 1.
        """
        n, (_, actions) = len(self), self.action_mask.shape
        into = self.child.bincount(minlength=n)
        log_pb = -into[self.child].double().log() if log_pb is None else log_pb.double()
        if log_pb.shape != self.child.shape:
            raise ValueError(f"log_pb has shape {tuple(log_pb.shape)}, expected ({len(self.child)},): one for each edge")
        total = torch.zeros(n, dtype=torch.float64, device=log_pb.device).index_add(0, self.child, log_pb.exp())[1:]
        if not bool(((total - 1).abs() < 1e-6).all()):
            worst = total[(total - 1).abs().nan_to_num(torch.inf).argmax()]
            raise ValueError(
                f"P_B over the edges into a state sums to {float(worst)}, expected 1: normalise over equal `child`"
            )
        log_flow = torch.full((n,), -torch.inf, dtype=torch.float64, device=log_pb.device)
        log_flow[self.objects] = self.log_reward
        log_edge = torch.empty_like(log_pb)
        order = self.parent.argsort(stable=True)
        cuts = torch.searchsorted(self.parent[order], torch.tensor(self._state_cuts, device=order.device)).tolist()
        for (lo, hi), (first, last) in reversed(list(zip(pairwise(self._state_cuts), pairwise(cuts), strict=True))):
            e = order[first:last]
            log_edge[e] = log_flow[self.child[e]] + log_pb[e]
            out = segment_logsumexp(log_edge[e], self.parent[e] - lo, hi - lo)
            log_flow[lo:hi] = torch.where(self.terminated[lo:hi], log_flow[lo:hi], out)
        log_pf = torch.full((n, actions), -torch.inf, dtype=torch.float64, device=log_pb.device)
        nothing = log_edge == -torch.inf
        log_pf[self.parent, self.action] = torch.where(nothing, -torch.inf, log_edge - log_flow[self.parent])
        return ExactFlow(log_flow, log_edge, log_pf)


def enumerate_dag(env: DagEnv, limit: int = 2_000_000, log_reward: Callable[[Tensor], Tensor] | None = None) -> Enumeration:
    """Enumerate all states that can be reached from the source.

    Args:
        env: the environment.
        limit: the most states; an object and the state before its stop action are two.
        log_reward: of objects [K, *obs], [K], in place of the environment's.

    Returns:
        All states, edges and rewards.

    Raises:
        TooManyStates: there are more than `limit` states.
        NotADag: there is a cycle, a path longer than the horizon, or an unfinished state without a valid action.
        ValueError: two states have the same key.
    """
    if offers(env, Indexed) and env.n_states > limit:
        raise TooManyStates(
            f"the environment has {env.n_states} observations, more than the limit of {limit} states: "
            "use the sampled metrics, or raise `limit`"
        )
    log_reward = log_reward or env.log_reward
    if not offers(env, Keyed):
        return enumeration_of(search(env, limit, hash_key), log_reward, hash_key)

    def number(obs: Tensor, terminated: Tensor) -> Tensor:
        return 2 * env.index(obs) + terminated

    return enumeration_of(search(env, limit, number), log_reward, number)


def enumeration_of(graph: Graph, log_reward: Callable[[Tensor], Tensor], key_of: KeyOf) -> Enumeration:
    """Sort the states and edges of a graph, and add the rewards [K] that log_reward gives to objects [K, *obs]."""
    order = key_of(graph.obs, graph.terminated).argsort()
    order = order[graph.level[order].argsort(stable=True)]
    obs, terminated, level, mask = (x[order] for x in (graph.obs, graph.terminated, graph.level, graph.action_mask))
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    parent, action, child = rank[graph.parent], graph.action, rank[graph.child]
    edges = (parent * mask.shape[1] + action).argsort()
    edges = edges[child[edges].argsort(stable=True)]
    objects = terminated.nonzero()[:, 0]
    log_r = log_reward(obs[objects]).double()
    return Enumeration(obs, terminated, level, mask, parent[edges], action[edges], child[edges], objects, log_r, key_of)
