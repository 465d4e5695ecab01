"""Forward-looking DB and SubTB (Pan et al. 2023, 2302.01687): the flow is learned relative to a reward of unfinished states.

F(s) = F~(s) R(s), with R extended to states that have not ended (energy E = -log R), and F~(x) = 1 at finished objects
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.ranges import Weight, check_fields
from gflownet.flows.flows import Flows
from gflownet.objectives.detailed_balance import detailed_balance
from gflownet.objectives.residuals import LOSSES, Residual
from gflownet.objectives.subtrajectory_balance import subtrajectory_balance


def forward_looking(flows: Flows) -> Tensor:
    """log F(s_t) = log F~(s_t) + log R(s_t), [T + 1, S, n]; log R(x) after the end."""
    inside = torch.cat([flows.mask, torch.zeros_like(flows.mask[:1])])
    return torch.where(inside, flows.log_state_flow, 0.0) + flows.log_reward_at


@dataclass(frozen=True)
class ForwardLookingDB:
    """Forward-looking detailed balance (Pan et al. 2023, 2302.01687)."""

    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset({"state_flow"})

    def loss(self, flows: Flows) -> Tensor:
        delta = detailed_balance(forward_looking(flows), flows.log_pf, flows.log_pb)
        return flows.mean(LOSSES[self.residual](delta))

    def log_z(self, flows: Flows) -> Tensor:
        return (flows.log_state_flow[0] + flows.log_reward_at[0])[:, 0]


@dataclass(frozen=True)
class ForwardLookingSubTB:
    """Forward-looking sub-trajectory balance (Pan et al. 2023, 2302.01687)."""

    decay: Weight = 0.9
    """λ: a sub-trajectory of length l has weight λ^l"""
    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset({"state_flow"})

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, flows: Flows) -> Tensor:
        log_flow = forward_looking(flows)
        return flows.mean(subtrajectory_balance(log_flow, flows.log_pf, flows.log_pb, flows.visited, self.decay, self.residual))

    def log_z(self, flows: Flows) -> Tensor:
        return (flows.log_state_flow[0] + flows.log_reward_at[0])[:, 0]
