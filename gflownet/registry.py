"""The register: every method by name, GFlowNets with their objectives and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """make      an objective (a GFlowNet is made of it) or a method of its own: a dataclass of knobs
    objective  which of the two
    preset     the knobs that the name stands for
    about      one line for people
    """

    make: Callable[..., Any]
    about: str
    objective: bool = True
    preset: dict[str, Any] = field(default_factory=dict)


def register() -> dict[str, Entry]:
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
        "fm": Entry(FlowMatching, "flow matching: what flows into a state flows out (Bengio et al. 2021)"),
        "db": Entry(DetailedBalance, "detailed balance: what flows along an edge flows back (2111.09266)"),
        "mdb": Entry(ModifiedDetailedBalance, "modified detailed balance, where every state can be kept (2202.13903)"),
        "tb": Entry(TrajectoryBalance, "trajectory balance (2201.13259)"),
        "vargrad": Entry(VarGrad, "trajectory balance without log Z: variance over the batch (2302.05446)"),
        "subtb": Entry(SubTrajectoryBalance, "sub-trajectory balance (2209.12782)"),
        "fl-db": Entry(ForwardLookingDB, "forward-looking detailed balance (2302.01687)"),
        "fl-subtb": Entry(ForwardLookingSubTB, "forward-looking sub-trajectory balance (2302.01687)"),
        "soft-dqn": Entry(SoftDQN, "soft Q-learning with rewards log P_B (2310.12934)"),
        "munchausen": Entry(
            SoftDQN, "soft Q-learning with a bonus for its own log-policy (2310.12934)", preset={"munchausen": 0.15}
        ),
        "mcmc": Entry(Metropolis, "Metropolis-Hastings, rejections counted", objective=False),
        "ppo": Entry(PPO, "proximal policy optimisation of R(x)", objective=False),
        "soft-pg": Entry(SoftPolicyGradient, "entropy-regularised policy gradient", objective=False),
        "uniform": Entry(Uniform, "uniform random moves", objective=False),
    }
