"""FM: flow matching (Bengio et al., NeurIPS 2021, eq. 12). Inflow and outflow of a state are equal.

    L = Σ_{s' ≠ s0} λ(s') ( log[ε + Σ_{(s,a): T(s,a)=s'} exp F(s,a)] - log[ε + R(s') + Σ_a' exp F(s',a')] )²

with R = 0 at unfinished states, no outgoing sum at finished objects, λ = λ_T at finished objects and 1 elsewhere; the mean over
all visits of the trajectories to states other than s0. The policy is P_F(a|s) ∝ exp F(s,a).

Differs from the paper: a mean over visits, as in its code, not a sum. Its grid code has no ε (here 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.ranges import NonNegative, check_fields
from gflownet.flows.edges import edges_of
from gflownet.flows.flows import Flows
from gflownet.objectives.residuals import LOSSES, Residual


def flow_matching(log_inflow: Tensor, log_outflow: Tensor, smoothing: float) -> Tensor:
    """The residual log(ε + in) - log(ε + out), elementwise."""
    if smoothing > 0:
        floor = torch.full_like(log_inflow, math.log(smoothing))
        log_inflow, log_outflow = torch.logaddexp(log_inflow, floor), torch.logaddexp(log_outflow, floor)
    return log_inflow - log_outflow


@dataclass(frozen=True)
class FlowMatching:
    """Flow matching: inflow equals outflow (Bengio et al. 2021)."""

    smoothing: NonNegative = 0.0
    """ε of eq. 12, added to inflow and outflow: flows far below it have no influence"""
    terminal_weight: NonNegative = 1.0
    """λ_T, the weight of finished objects"""
    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset()
    backwards: ClassVar[tuple[str, ...]] = ("uniform",)  # the formula has no P_B

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, flows: Flows) -> Tensor:
        edges = edges_of(flows)
        real = edges.count > 0
        inflow, outflow = (torch.where(real, x, 0.0) for x in (edges.log_inflow, edges.log_outflow))
        delta = flow_matching(inflow, outflow, self.smoothing)
        weight = torch.where(edges.terminal, self.terminal_weight, 1.0)
        visits = edges.count.sum(1).clamp_min(1e-30)  # 0 if no trajectory trains this head
        return (edges.count * weight * LOSSES[self.residual](delta)).sum(1) / visits

    def log_z(self, flows: Flows) -> Tensor:
        return flows.log_source_flow
