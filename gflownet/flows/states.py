"""`distinct`: deduplicates the states of a batch, so that the network is evaluated once at each.

On a grid of 4,096 cells a batch of 4,096 trajectories makes 80,000 visits, and early in training only to a few cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.core import Trajectories
from envs.dag.protocols import Indexed, Keyed, offers
from envs.dag.search import hash_key

TABLE = 4  # a table of marks is used if there are at most this many times more states than visits, else a sort


@dataclass(frozen=True)
class Distinct:
    """S seeds, M rows each; seeds with fewer distinct states have rows of padding.

    row    [R]     index of each visit among the S·M rows
    first  [S·M]   index of one visit to each row (0 for padding)
    real   [S·M]   bool, False for padding
    count  [S·M]   number of visits
    """

    row: Tensor
    first: Tensor
    real: Tensor
    count: Tensor
    seeds: int

    def of(self, visits: Tensor) -> Tensor:
        """Select one visit for each row: [R, ...] -> [S, M, ...]."""
        return visits[self.first].view(self.seeds, -1, *visits.shape[1:])


def distinct(key: Tensor, seed: Tensor | None, seeds: int, n_keys: int | None) -> Distinct:
    """Group visits by key within each seed.

    Args:
        key: [R] int64.
        seed: [R], the seed of each visit; None: there is one seed.
        seeds: S.
        n_keys: keys are from 0 to n_keys - 1; None: they may be any.

    Returns:
        The distinct states.
    """
    if n_keys is not None and seeds * n_keys < 2**62:
        key = key if seed is None else key + seed * n_keys
        total = seeds * n_keys
        if total <= max(TABLE * len(key), 8192):
            return _by_table(key, total, seeds)
        unique, row, count = torch.unique(key, return_inverse=True, return_counts=True)
        owner = unique // n_keys if seeds > 1 else None
    elif seed is None:
        unique, row, count = torch.unique(key, return_inverse=True, return_counts=True)
        owner = None
    else:
        unique, row, count = torch.unique(torch.stack([seed, key], 1), dim=0, return_inverse=True, return_counts=True)
        owner = unique[:, 0]
    first = key.new_zeros(len(count)).scatter_(0, row, torch.arange(len(row), device=key.device))
    return _padded(row, first, count, owner, seeds)


def states_after(tau: Trajectories) -> tuple[Tensor, Tensor]:
    """The states that the steps of trajectories led to.

    Args:
        tau: [T, B], episodes with their last states.

    Returns:
        s_t+1, [T·B, *obs], and whether it is finished, [T·B] bool; after the end of an episode, the finished object.
    """
    assert tau.last is not None
    ended = torch.cat([~tau.mask[1:], torch.ones_like(tau.mask[:1])])
    return torch.cat([tau.obs[1:], tau.last[None]]).flatten(0, 1), ended.flatten()


def _by_table(key: Tensor, total: int, seeds: int) -> Distinct:
    marks = torch.bincount(key, minlength=total)
    there = marks.nonzero()[:, 0]
    rank = key.new_empty(total)
    rank[there] = torch.arange(len(there), device=key.device)
    first = key.new_empty(total)
    first[key] = torch.arange(len(key), device=key.device)
    owner = there // (total // seeds) if seeds > 1 else None
    return _padded(rank[key], first[there], marks[there], owner, seeds)


def _padded(row: Tensor, first: Tensor, count: Tensor, owner: Tensor | None, seeds: int) -> Distinct:
    if owner is None:
        return Distinct(row, first, torch.ones_like(first, dtype=torch.bool), count, seeds)
    sizes = torch.bincount(owner, minlength=seeds)
    width, start = int(sizes.max()), sizes.cumsum(0) - sizes
    place = torch.arange(len(owner), device=owner.device) - start[owner] + owner * width
    full = [x.new_zeros(seeds * width).index_copy_(0, place, x) for x in (first, count)]
    return Distinct(place[row], full[0], full[1] > 0, full[1], seeds)


def key_of(env: Any) -> tuple[Callable[[Tensor], Tensor], int | None]:
    """The function from observations [M, *obs] to keys [M], an index or a hash, and the number of keys (None: not known)."""
    if offers(env, Indexed) and env.n_states < 2**62:
        return env.index, env.n_states
    if offers(env, Keyed) and not offers(env, Indexed):
        return env.index, None
    return hash_key, None
