"""TB: trajectory balance (Malkin et al. 2022, 2201.13259).

L = mean over trajectories of ( log Z + Σ_t log P_F(s_t+1|s_t) - log R(x) - Σ_t log P_B(s_t|s_t+1) )²
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gflownet.flows.flows import Flows
from gflownet.objectives.residuals import LOSSES, Residual


def trajectory_balance(log_z: Tensor, log_pf: Tensor, log_pb: Tensor, log_reward: Tensor) -> Tensor:
    """The residual of each trajectory, [S, n], from log_z [S, 1], log_pf and log_pb [T, S, n], log_reward [S, n]."""
    return log_z + log_pf.sum(0) - log_reward - log_pb.sum(0)


@dataclass(frozen=True)
class TrajectoryBalance:
    """Trajectory balance (Malkin et al. 2022, 2201.13259)."""

    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset({"log_z"})

    def loss(self, flows: Flows) -> Tensor:
        delta = trajectory_balance(flows.log_z[:, None], flows.log_pf, flows.log_pb, flows.log_reward)
        return flows.mean(LOSSES[self.residual](delta))

    def log_z(self, flows: Flows) -> Tensor:
        return flows.log_z
