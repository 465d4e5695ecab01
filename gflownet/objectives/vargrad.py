"""VarGrad, also log-partition variance (Richter et al. 2020, 2010.10436; Zhang et al. 2023, 2302.05446): TB without log Z.

    ζ = log R(x) + Σ log P_B - Σ log P_F        L = mean over trajectories of (ζ - mean ζ)²

At the optimum ζ is log Z for every trajectory. The mean is differentiated too, so that the gradient is that of the variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gflownet.flows.flows import Flows
from gflownet.objectives.residuals import LOSSES, Residual


def log_partition(log_pf: Tensor, log_pb: Tensor, log_reward: Tensor) -> Tensor:
    """ζ of each trajectory, [S, n]."""
    return log_reward + log_pb.sum(0) - log_pf.sum(0)


@dataclass(frozen=True)
class VarGrad:
    """Trajectory balance without log Z: variance over the batch (Zhang et al. 2023, 2302.05446)."""

    residual: Residual = "squared"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset()

    def loss(self, flows: Flows) -> Tensor:
        if flows.log_reward.shape[1] < 2:
            raise ValueError("vargrad is a variance over the batch: it needs a batch size of at least 2")
        zeta = log_partition(flows.log_pf, flows.log_pb, flows.log_reward)
        return flows.mean(LOSSES[self.residual](zeta - flows.mean(zeta)[:, None]))

    def log_z(self, flows: Flows) -> Tensor:
        return flows.mean(log_partition(flows.log_pf, flows.log_pb, flows.log_reward))
