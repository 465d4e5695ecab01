"""Every method by name: GFlowNets with their objectives, and baselines. Reading the names loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class MethodEntry:
    """A registered name.

    Attributes:
        source: the class of an objective (a GFlowNet is made of it) or of a whole method, or where it is: "module:Class".
        about: the first line of the class's docstring, or one line about the preset.
        objective: whether it is an objective.
        preset: the hyperparameters that the name fixes.
    """

    source: str | Callable[..., Any]
    about: str
    objective: bool = True
    preset: dict[str, Any] = field(default_factory=dict)

    @property
    def make(self) -> Callable[..., Any]:
        """The class: a dataclass of hyperparameters."""
        if not isinstance(self.source, str):
            return self.source
        module, _, name = self.source.partition(":")
        make: Callable[..., Any] = getattr(import_module(module), name)
        return make


def register() -> dict[str, MethodEntry]:
    """Every method by name."""
    return {
        "fm": _objective("flow_matching:FlowMatching", "Flow matching: inflow equals outflow (Bengio et al. 2021)."),
        "db": _objective("detailed_balance:DetailedBalance", "Detailed balance (Bengio et al. 2021, 2111.09266)."),
        "mdb": _objective(
            "modified_detailed_balance:ModifiedDetailedBalance",
            "Modified detailed balance, where every state may be final (Deleu et al. 2022, 2202.13903).",
        ),
        "tb": _objective("trajectory_balance:TrajectoryBalance", "Trajectory balance (Malkin et al. 2022, 2201.13259)."),
        "vargrad": _objective(
            "vargrad:VarGrad", "Trajectory balance without log Z: variance over the batch (Zhang et al. 2023, 2302.05446)."
        ),
        "subtb": _objective(
            "subtrajectory_balance:SubTrajectoryBalance", "Sub-trajectory balance, SubTB(λ) (Madan et al. 2023, 2209.12782)."
        ),
        "fl-db": _objective(
            "forward_looking:ForwardLookingDB", "Forward-looking detailed balance (Pan et al. 2023, 2302.01687)."
        ),
        "fl-subtb": _objective(
            "forward_looking:ForwardLookingSubTB", "Forward-looking sub-trajectory balance (Pan et al. 2023, 2302.01687)."
        ),
        "soft-dqn": _objective("soft_dqn:SoftDQN", "Soft Q-learning with rewards log P_B (Tiapkin et al. 2023, 2310.12934)."),
        "munchausen": _objective(
            "soft_dqn:SoftDQN", "Soft DQN with a bonus for its own log-policy (2310.12934).", {"munchausen": 0.15}
        ),
        "mcmc": _baseline("metropolis:Metropolis", "Metropolis-Hastings on finished objects, rejections counted."),
        "ppo": _baseline("ppo:PPO", "Proximal policy optimisation of R(x) (Schulman et al. 2017, 1707.06347)."),
        "soft-pg": _baseline(
            "soft_pg:SoftPolicyGradient", "Entropy-regularised policy gradient (Tiapkin et al. 2023, 2310.12934)."
        ),
        "uniform": _baseline("uniform:Uniform", "Uniform valid actions: the policy before any learning."),
    }


def _objective(source: str, about: str, preset: dict[str, Any] | None = None) -> MethodEntry:
    return MethodEntry(f"gflownet.objectives.{source}", about, preset=preset or {})


def _baseline(source: str, about: str) -> MethodEntry:
    return MethodEntry(f"gflownet.baselines.{source}", about, objective=False)
