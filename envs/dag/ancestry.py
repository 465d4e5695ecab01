"""`ancestry`: all ancestors of given objects, for exact p(x) in DAGs that are too large to enumerate.

    new = the objects;  while new: new = their parents that were not met before
    u(source) = 1,  u(s') = Σ_(s,a)->s' u(s) P_F(a | s)                                          level by level, in float64

An object of n parts has at most 2^n ancestors (for a block tree, its connected subtrees), so p(x) = u(x) is exact and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from envs.core import DagEnv
from envs.dag.search import hash_key, levels
from envs.dag.segments import distinct_keys


@dataclass(frozen=True)
class Ancestry:
    """N states, the objects among them, and all E edges into any of them.

    obs [N, *obs], terminated [N] bool      parent, action, child [E], sorted by the child's level
    level [N]   length of the longest path from the source
    objects [M] rows of the given objects
    """

    obs: Tensor
    terminated: Tensor
    parent: Tensor
    action: Tensor
    child: Tensor
    level: Tensor
    objects: Tensor

    @cached_property
    def _cuts(self) -> list[int]:
        by_level = self.level[self.child].bincount(minlength=int(self.level.max()) + 1)
        return [0, *by_level.cumsum(0).tolist()]

    def probabilities(self, edge_log_pf: Tensor) -> Tensor:
        """Probabilities p(x) of the objects, [..., M] float64, from log P_F of each edge [..., E]."""
        lead = edge_log_pf.shape[:-1]
        p = edge_log_pf.reshape(-1, len(self.child)).double().exp().T
        visits = torch.zeros(len(self.obs), p.shape[1], dtype=torch.float64, device=p.device)
        visits[self.level == 0] = 1
        for first, last in pairwise(self._cuts):
            e = slice(first, last)
            visits.index_add_(0, self.child[e], visits[self.parent[e]] * p[e])
        return visits[self.objects].T.reshape(*lead, len(self.objects))

    def log_paths(self) -> Tensor:
        """Log of the number of paths from the source to each object, [M] float64."""
        return self.probabilities(torch.zeros(len(self.child), device=self.child.device)).log()


def ancestry(env: DagEnv, obs: Tensor, terminated: Tensor | None = None) -> Ancestry:
    """Find all ancestors of M states with `env.parents`.

    Args:
        env: the environment.
        obs: the states, [M, *obs]; repeated ones are allowed.
        terminated: [M] bool; None: all states are finished objects.

    Returns:
        The ancestors, including the states themselves, and all edges into them.
    """
    ended = torch.ones(len(obs), dtype=torch.bool, device=obs.device) if terminated is None else terminated
    known, row, first = distinct_keys(hash_key(obs, ended))
    new = torch.arange(len(known), device=row.device)
    states, flags, keys = [obs[first]], [ended[first]], known
    edges: list[Tensor] = []
    while len(new):
        base = len(keys) - len(new)
        listed = env.parents(states[-1], flags[-1])
        going = torch.zeros_like(listed.child, dtype=torch.bool)
        found, where, example = distinct_keys(hash_key(listed.obs, going))
        ordered, order = keys.sort()
        place = torch.searchsorted(ordered, found).clamp_max(len(ordered) - 1)
        met = ordered[place] == found
        rank = torch.where(met, order[place], len(keys) - 1 + (~met).cumsum(0))
        fresh = example[~met]
        edges.append(torch.stack([rank[where], listed.action, base + listed.child]))
        states.append(listed.obs[fresh])
        flags.append(going[fresh])
        keys, new = torch.cat([keys, found[~met]]), fresh
    parent, action, child = torch.cat(edges, 1)
    level = levels(parent, child, len(keys))
    order = level[child].argsort(stable=True)
    return Ancestry(torch.cat(states), torch.cat(flags), parent[order], action[order], child[order], level, row)
