"""Groups of equal keys, and sums over segments, such as all edges into a state."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct_keys(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Group equal keys.

    Args:
        keys: [R] int64.

    Returns:
        The U distinct keys, ascending; [R] the index of each key among them; [U] the index in `keys` of one occurrence of each.
    """
    distinct, row = torch.unique(keys, return_inverse=True)
    return distinct, row, torch.empty_like(distinct).scatter_(0, row, torch.arange(len(row), device=keys.device))


def segment_logsumexp(x: Tensor, segment: Tensor, segments: int) -> Tensor:
    """log Σ exp x over the entries of each segment.

    Args:
        x: [E].
        segment: [E] int64, below `segments`.
        segments: number of segments.

    Returns:
        [segments]; -inf for a segment without entries, whose gradient is 0.
    """
    top = torch.full((segments,), -torch.inf, dtype=x.dtype, device=x.device)
    top = top.scatter_reduce(0, segment, x.detach(), "amax")
    base = torch.where(torch.isfinite(top), top, 0.0)
    total = torch.zeros_like(base).index_add(0, segment, (x - base[segment]).exp())
    empty = total == 0
    return torch.where(empty, -torch.inf, torch.where(empty, 1.0, total).log() + base)
