"""Soft DQN and Munchausen DQN as GFlowNets (Tiapkin et al. 2023, 2310.12934): entropy-regularised Q-learning with discount 1,
rewards log P_B(s|s') before the end and log R(x) at the end.

    L = mean over steps of ρ( Q(s,a) - y ),   y = log P_B(s|s') + α clip(λ log π¯(a|s), l0, 0) + V¯(s')
    V(s') = λ log Σ_a' exp(Q(s',a')/λ),  V(x) = log R(x),   π = softmax(Q/λ),   λ = 1/(1 - α)

with ¯ for the target network. This λ leaves the optimal policy unchanged; V is log F, and log Z at the source. The outputs of
the network are Q/λ, so that the policy is their softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from envs.ranges import Range, check_fields
from gflownet.flows.flows import Flows
from gflownet.objectives.residuals import LOSSES, Residual


def soft_bellman(q: Tensor, log_pb: Tensor, bonus: Tensor, value_next: Tensor) -> Tensor:
    """The residual Q(s,a) - (log P_B + bonus + V(s')) of each step."""
    return q - (log_pb + bonus + value_next)


@dataclass(frozen=True)
class SoftDQN:
    """Soft Q-learning with rewards log P_B (Tiapkin et al. 2023, 2310.12934)."""

    munchausen: Annotated[float, Range(0, 1, below=True)] = 0.0
    """α, the weight of the log-policy bonus; 0.15 is usual, 0 is plain soft DQN"""
    clip: Annotated[float, Range(high=0)] = -2500.0
    """l0, the lowest bonus before weighing"""
    residual: Residual = "huber"
    """loss applied to the residual: squared, huber or shifted-cosh"""

    uses: ClassVar[frozenset[str]] = frozenset({"target"})
    backwards: ClassVar[tuple[str, ...]] = (
        "uniform",
        "maxent",
        "tlm",
    )  # P_B is part of the reward and not trained by this loss

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, flows: Flows) -> Tensor:
        temperature, slow = 1 / (1 - self.munchausen), flows.target
        bonus = self.munchausen * (temperature * slow.log_pf).clamp(self.clip, 0.0)
        value_next = flows.end_with_reward(temperature * slow.log_sum_edges)[1:]
        delta = soft_bellman(temperature * flows.edge_flow, flows.log_pb.detach(), bonus, value_next)
        return flows.mean(LOSSES[self.residual](delta * flows.mask))

    def log_z(self, flows: Flows) -> Tensor:
        return flows.log_sum_edges[0, :, 0] / (1 - self.munchausen)
