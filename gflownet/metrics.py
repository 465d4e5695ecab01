"""Distances between distributions, visit counts, correlations. Pure functions in float64, batched over leading axes (seeds).

Distributions p, q [..., K] over the K objects of an enumeration; counts [..., K]; log p and log R of M objects [..., M].

A distribution estimated from n draws has a positive distance to the true one. `noise_floor` is E Σ|p^ - p| of n independent
draws; that of the total variation is 1/2 of it, and that of the paper's mean 1/K of it. If n p(x) is large everywhere:
    E KL(p^ || p) ≈ (K - 1) / 2n        E JSD(p^, p) ≈ (K - 1) / 8n
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# -- distances


def l1_sum(p: Tensor, q: Tensor) -> Tensor:
    """Σ|p - q|, from 0 to 2, [...]."""
    return (p.double() - q.double()).abs().sum(-1)


def l1_mean(p: Tensor, q: Tensor) -> Tensor:
    """Σ|p - q| / K, the "empirical L1 error" of Bengio et al. (NeurIPS 2021), [...]."""
    return l1_sum(p, q) / p.shape[-1]


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Σ|p - q| / 2, from 0 to 1, [...]."""
    return l1_sum(p, q) / 2


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p log(p/q) in nats, inf where p > 0 = q, [...]. The paper's code stores -kl(exact, empirical)."""
    p, q = p.double(), q.double()
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence, from 0 to log 2 nats, [...]."""
    middle = (p.double() + q.double()) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def empirical(counts: Tensor) -> Tensor:
    """The distribution of counts [..., K], [..., K]; NaN if all are 0."""
    return counts.double() / counts.sum(-1, keepdim=True)


def noise_floor(p: Tensor, n: int) -> float:
    """E Σ_x |p^(x) - p(x)| of n independent draws from a distribution [K].

    Each count is binomial, with mean absolute deviation 2 ν C(n, ν) p^ν (1 - p)^(n - ν + 1), ν = floor(np) + 1 (De Moivre
    1730; Diaconis and Zabell 1991).
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least one draw")
    p, top = p.double(), torch.tensor(float(n), dtype=torch.float64, device=p.device)
    nu = (top * p).floor() + 1
    log_binomial = torch.lgamma(top + 1) - torch.lgamma(nu + 1) - torch.lgamma(top - nu + 1)
    log_deviation = nu.log() + log_binomial + torch.xlogy(nu, p) + torch.special.xlog1py(top - nu + 1, -p)
    return float(2 * log_deviation.exp().sum() / n)


# -- visits


class SlidingWindow(NamedTuple):
    """Counts of the last `size` objects of each seed: the "last 200,000 visited" of Bengio et al.

    ids       [S, size] int32 ring buffer of object indices, -1 where there is none yet
    counts    [S, K] int64    occurrences of each object in it
    position  objects ever added, for each seed
    """

    ids: Tensor
    counts: Tensor
    position: int

    @staticmethod
    def begin(seeds: int, size: int, objects: int, device: torch.device | str = "cpu") -> SlidingWindow:
        ids = torch.full((seeds, size), -1, dtype=torch.int32, device=device)
        return SlidingWindow(ids, torch.zeros(seeds, objects, dtype=torch.int64, device=device), 0)

    def add(self, ids: Tensor) -> SlidingWindow:
        """Replace the oldest entries by objects ids [S, m], in order; in place, in O(m)."""
        size, m = self.ids.shape[1], ids.shape[1]
        ids = ids[:, -size:].long() if m > size else ids.long()
        place = (torch.arange(m - ids.shape[1], m, device=ids.device) + self.position) % size
        old = self.ids[:, place].long()
        self.counts.scatter_add_(1, old.clamp_min(0), -(old >= 0).long())
        self.counts.scatter_add_(1, ids, torch.ones_like(ids))
        self.ids[:, place] = ids.int()
        return self._replace(position=self.position + m)

    @property
    def distribution(self) -> Tensor:
        """The distribution of the objects in the window, [S, K]; NaN before any was added."""
        return empirical(self.counts)

    @property
    def held(self) -> int:
        """Number of objects in the window, for each seed: the n of `noise_floor`."""
        return min(self.position, self.ids.shape[1])


# -- correlation of log p with log R


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation over the last axis, [...]; NaN if x or y is constant or not finite."""
    x, y = x.double(), y.double()
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def ranks(x: Tensor) -> Tensor:
    """Ranks over the last axis, [..., M] float64, 1 for the smallest; ties get the mean of their ranks."""
    ordered = x.sort(-1).values.contiguous()
    below = torch.searchsorted(ordered, x.contiguous())
    up_to = torch.searchsorted(ordered, x.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman correlation over the last axis, [...]; -inf is the smallest value."""
    return pearson(ranks(x), ranks(y))
