"""The register: every method by name, GFlowNets with their objectives and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MethodEntry:
    """make      an objective (a GFlowNet is made of it) or a method of its own: a dataclass of knobs
    objective  which of the two
    preset     the knobs that the name stands for
    about      one line for people
    """

    make: Callable[..., Any]
    about: str
    objective: bool = True
    preset: dict[str, Any] = field(default_factory=dict)


def register() -> dict[str, MethodEntry]:
    from gflownet.baselines.metropolis import Metropolis
    from gflownet.baselines.ppo import PPO
    from gflownet.baselines.soft_pg import SoftPolicyGradient
    from gflownet.baselines.uniform import Uniform
    from gflownet.objectives.detailed_balance import DetailedBalance
    from gflownet.objectives.flow_matching import FlowMatching
    from gflownet.objectives.forward_looking import ForwardLookingDB, ForwardLookingSubTB
    from gflownet.objectives.modified_detailed_balance import ModifiedDetailedBalance
    from gflownet.objectives.soft_dqn import SoftDQN
    from gflownet.objectives.subtrajectory_balance import SubTrajectoryBalance
    from gflownet.objectives.trajectory_balance import TrajectoryBalance
    from gflownet.objectives.vargrad import VarGrad

    return {
        "fm": MethodEntry(FlowMatching, "flow matching: what flows into a state flows out (Bengio et al. 2021)"),
        "db": MethodEntry(DetailedBalance, "detailed balance: what flows along an edge flows back (2111.09266)"),
        "mdb": MethodEntry(ModifiedDetailedBalance, "modified detailed balance, where every state can be kept (2202.13903)"),
        "tb": MethodEntry(TrajectoryBalance, "trajectory balance (2201.13259)"),
        "vargrad": MethodEntry(VarGrad, "trajectory balance without log Z: variance over the batch (2302.05446)"),
        "subtb": MethodEntry(SubTrajectoryBalance, "sub-trajectory balance (2209.12782)"),
        "fl-db": MethodEntry(ForwardLookingDB, "forward-looking detailed balance (2302.01687)"),
        "fl-subtb": MethodEntry(ForwardLookingSubTB, "forward-looking sub-trajectory balance (2302.01687)"),
        "soft-dqn": MethodEntry(SoftDQN, "soft Q-learning with rewards log P_B (2310.12934)"),
        "munchausen": MethodEntry(
            SoftDQN, "soft Q-learning with a bonus for its own log-policy (2310.12934)", preset={"munchausen": 0.15}
        ),
        "mcmc": MethodEntry(Metropolis, "Metropolis-Hastings, rejections counted", objective=False),
        "ppo": MethodEntry(PPO, "proximal policy optimisation of R(x)", objective=False),
        "soft-pg": MethodEntry(SoftPolicyGradient, "entropy-regularised policy gradient", objective=False),
        "uniform": MethodEntry(Uniform, "uniform random actions", objective=False),
    }
