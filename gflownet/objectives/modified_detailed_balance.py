"""Modified DB (Deleu et al. 2022, 2202.13903), where every state can stop: F is eliminated by P_F(stop|s) = R(s)/F(s).

L = mean over steps s -> s' other than stop of
    ( log R(s') + log P_B(s|s') + log P_F(stop|s) - log R(s) - log P_F(s'|s) - log P_F(stop|s') )²
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gflownet.flows.flows import Flows
from gflownet.objectives.residuals import LOSSES, Residual


def modified_detailed_balance(log_reward: Tensor, log_stop: Tensor, log_pf: Tensor, log_pb: Tensor) -> Tensor:
    """The residual of each step, [T, ...], from log R and log P_F(stop|·) at s_0 .. s_T [T + 1, ...]."""
    log_flow = log_reward - log_stop
    return log_flow[1:] + log_pb - log_flow[:-1] - log_pf


@dataclass(frozen=True)
class ModifiedDetailedBalance:
    """Modified detailed balance, where every state may be final (Deleu et al. 2022, 2202.13903)."""

    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset()

    def loss(self, flows: Flows) -> Tensor:
        delta = modified_detailed_balance(flows.log_reward_at, flows.log_stop, flows.log_pf, flows.log_pb)
        inside = flows.weight * (flows.mask & ~flows.stops)
        loss = LOSSES[self.residual](torch.where(inside > 0, delta, 0.0))
        return (loss * inside).sum((0, 2)) / inside.sum((0, 2)).clamp_min(1)  # 0 if all stop at once

    def log_z(self, flows: Flows) -> Tensor:
        return (flows.log_reward_at - flows.log_stop)[0, :, 0]
