"""SubTB(λ): sub-trajectory balance (Madan et al. 2023, 2209.12782), over all sub-trajectories.

    L = mean over trajectories of  Σ_{i<j} λ^(j-i) δ_ij² / Σ_{i<j} λ^(j-i)
    δ_ij = log F(s_i) + Σ_{i<=t<j} log P_F - log F(s_j) - Σ_{i<=t<j} log P_B

With v_t = log F(s_t) - Σ_{k<t} (log P_F - log P_B)_k every δ_ij is v_i - v_j. So the sum of squares over all pairs is a
quadratic form in v: two products with a T × T matrix, with memory linear in the length. Other residuals are summed lag by lag.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from envs.ranges import Weight, check_fields
from gflownet.flows.flows import Flows
from gflownet.objectives.residuals import LOSSES, Residual


def subtrajectory_balance(
    log_flow: Tensor, log_pf: Tensor, log_pb: Tensor, real: Tensor, decay: float, residual: Residual = "squared"
) -> Tensor:
    """The weighted mean loss over the sub-trajectories of each trajectory.

    Args:
        log_flow: [T + 1, ...], log F(s_t).
        log_pf: [T, ...].
        log_pb: [T, ...].
        real: [T + 1, ...] bool, whether s_t belongs to the trajectory.
        decay: λ.
        residual: the loss of a residual.

    Returns:
        [...].
    """
    zero = torch.zeros_like(log_flow[:1])
    v = log_flow - torch.cat([zero, (log_pf - log_pb).cumsum(0)])
    weight = real.to(v.dtype)
    # subtracting the mean of v changes nothing exactly, and avoids cancellation in the quadratic form
    v = torch.where(real, v - (v.detach() * weight).sum(0) / weight.sum(0), 0.0)
    pairs = (_kept_pairs if v.device.type == "cpu" else _pairs)(len(v), decay, v.dtype, v.device)
    near = (pairs @ weight.flatten(1)).view_as(v)
    total = (weight * near).sum(0) / 2
    if residual == "squared":
        return ((weight * near * v**2).sum(0) - (v * (pairs @ v.flatten(1)).view_as(v)).sum(0)) / total
    sums = [
        # stores only v, not a copy for each lag; the state of a generator cannot be read while a CUDA graph is captured
        checkpoint(_lag, v, weight, lag, decay, residual, use_reentrant=False, preserve_rng_state=False)
        for lag in range(1, len(v))
    ]
    return torch.stack(sums).sum(0) / total


def _pairs(length: int, decay: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[length, length] λ^|i - j|, 0 where i = j."""
    times = torch.arange(length, device=device)
    return torch.where(times[:, None] == times, 0.0, decay ** (times[:, None] - times).abs().to(dtype))


_kept_pairs = lru_cache(16)(_pairs)


def _lag(v: Tensor, weight: Tensor, lag: int, decay: float, residual: str) -> Tensor:
    return decay**lag * (LOSSES[residual](v[:-lag] - v[lag:]) * weight[:-lag] * weight[lag:]).sum(0)


@dataclass(frozen=True)
class SubTrajectoryBalance:
    """Sub-trajectory balance, SubTB(λ) (Madan et al. 2023, 2209.12782)."""

    decay: Weight = 0.9
    """λ: a sub-trajectory of length l has weight λ^l; near 0 this is DB, at 1 all have the same weight"""
    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset({"state_flow"})

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, flows: Flows) -> Tensor:
        return flows.mean(
            subtrajectory_balance(flows.log_state_flow, flows.log_pf, flows.log_pb, flows.visited, self.decay, self.residual)
        )

    def log_z(self, flows: Flows) -> Tensor:
        return flows.log_state_flow[0, :, 0]
