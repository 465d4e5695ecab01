"""`TopK`: the buffer of the best distinct objects that each seed has visited.

    candidates = objects with a higher reward than the worst in the buffer      (all of them until the buffer is full)
    buffer     = the `size` best of (buffer + candidates), each key once, at its first visit;
                 ties in order of visit

The result does not depend on how the objects are divided into batches, so that a resumed run has the same buffer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NONE = -1


class TopK(NamedTuple):
    """The buffer, best first; an empty entry has log-reward -inf, visited_at -1 and zeros.

    obs         [S, size, *obs]  observations, integers as int16
    log_reward  [S, size]        float64
    key         [S, size]        int64, the environment's `index`
    visited_at  [S, size]        int64, number of objects that the seed had visited, including this one
    """

    obs: Tensor
    log_reward: Tensor
    key: Tensor
    visited_at: Tensor

    @staticmethod
    def begin(seeds: int, size: int, obs: Tensor) -> TopK:
        """Make an empty buffer.

        Args:
            seeds: S.
            size: entries of each seed.
            obs: [any, *obs], an example for shape and dtype.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"got a top-K buffer of {size} objects, expected at least 1")
        dtype = obs.dtype if obs.is_floating_point() else torch.int16
        places = torch.zeros(seeds, size, dtype=torch.int64, device=obs.device)
        return TopK(
            torch.zeros(seeds, size, *obs.shape[1:], dtype=dtype, device=obs.device),
            torch.full((seeds, size), -torch.inf, dtype=torch.float64, device=obs.device),
            places,
            torch.full_like(places, NONE),
        )

    def add(self, obs: Tensor, log_reward: Tensor, key: Tensor, before: int) -> TopK:
        """Add n objects of each seed.

        Args:
            obs: [S, n, *obs], in order of visit.
            log_reward: [S, n].
            key: [S, n] int64, the environment's `index`.
            before: number of objects that each seed has visited before.

        Returns:
            The new buffer.
        """
        size = self.log_reward.shape[1]
        better = log_reward.double() > self.log_reward[:, -1:]
        most = int(better.sum(1).max())
        if not most:
            return self
        pick = (~better).int().argsort(dim=1, stable=True)[:, :most]
        real = better.gather(1, pick)
        log_r = torch.where(real, log_reward.double().gather(1, pick), -torch.inf)
        objects = torch.cat([self.obs, _rows(obs, pick).to(self.obs.dtype)], 1)
        log_r = torch.cat([self.log_reward, log_r], 1)
        keys = torch.cat([self.key, key.gather(1, pick)], 1)
        at = torch.cat([self.visited_at, torch.where(real, pick + before + 1, NONE)], 1)
        log_r = log_r.masked_fill(_met_before(keys, at), -torch.inf)
        order = at.argsort(dim=1, stable=True)
        order = order.gather(1, (-log_r.gather(1, order)).argsort(dim=1, stable=True))[:, :size]
        log_r = log_r.gather(1, order)
        empty = log_r == -torch.inf
        return TopK(
            _rows(objects, order).masked_fill(_like(empty, objects), 0),
            log_r,
            keys.gather(1, order).masked_fill(empty, 0),
            at.gather(1, order).masked_fill(empty, NONE),
        )

    @property
    def there(self) -> Tensor:
        """Which entries are not empty, [S, size] bool."""
        return self.visited_at != NONE


def _met_before(key: Tensor, at: Tensor) -> Tensor:
    """Whether the same key was visited earlier, [S, m] bool; without meaning for empty entries."""
    order = torch.where(at == NONE, torch.iinfo(torch.int64).max, at).argsort(dim=1, stable=True)
    order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    ordered = key.gather(1, order)
    again = torch.zeros_like(key, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.empty_like(again).scatter_(1, order, again)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x [S, n, ...] at index [S, m]: [S, m, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def _like(mask: Tensor, x: Tensor) -> Tensor:
    """[S, m] with axes of length 1 for those of an observation."""
    return mask.view(*mask.shape, *[1] * (x.dim() - 2))
