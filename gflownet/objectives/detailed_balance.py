"""DB: detailed balance (Bengio et al., "GFlowNet foundations", 2111.09266). Forward and backward flow of an edge are equal.

L = mean over steps of ( log F(s) + log P_F(s'|s) - log F(s') - log P_B(s|s') )²,    F(x) = R(x) at finished objects
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gflownet.flows.flows import Flows
from gflownet.objectives.residuals import LOSSES, Residual


def detailed_balance(log_flow: Tensor, log_pf: Tensor, log_pb: Tensor) -> Tensor:
    """The residual of each step, [T, ...], from log F(s_0 .. s_T) [T + 1, ...]."""
    return log_flow[:-1] + log_pf - log_flow[1:] - log_pb


@dataclass(frozen=True)
class DetailedBalance:
    """Detailed balance (Bengio et al. 2021, 2111.09266)."""

    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset({"state_flow"})

    def loss(self, flows: Flows) -> Tensor:
        delta = detailed_balance(flows.log_state_flow, flows.log_pf, flows.log_pb)
        return flows.mean(LOSSES[self.residual](delta))

    def log_z(self, flows: Flows) -> Tensor:
        return flows.log_state_flow[0, :, 0]
