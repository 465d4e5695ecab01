"""Generative flow networks: samplers that draw finished objects x with probability R(x)/Z, by constructing them step by step.

run = gflownet.train("molecules", objective="tb", reward="qed*sa", states=10_000)
run.sample(100, unique=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


def _refuse_shadows() -> None:
    """Raise ImportError when a folder of the user's hides one of this project's packages."""
    from importlib.util import find_spec
    from pathlib import Path

    home = Path(__file__).resolve().parents[1]
    for name in ("envs", "experiments"):
        spec = find_spec(name)
        places = [Path(p).resolve() for p in (spec.submodule_search_locations or [])] if spec else []
        if spec is not None and home / name not in places:
            found = places[0] if places else spec.origin
            raise ImportError(
                f"{found} shadows the package `{name}` of gflownet: rename that folder, or start Python in another one"
            )


_refuse_shadows()

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envs.core import DagEnv
    from envs.dag.bits import Bits
    from envs.dag.check_dag import check_dag
    from envs.dag.enumeration import Enumeration, enumerate_dag
    from envs.dag.hypergrid import HyperGrid
    from envs.dag.sets import Sets
    from envs.molecules.block_trees import BlockTrees
    from experiments.api import GFlowNetRun, PolicyGradientRun
    from gflownet.baselines.metropolis import Metropolis
    from gflownet.baselines.ppo import PPO
    from gflownet.baselines.soft_pg import SoftPolicyGradient
    from gflownet.baselines.uniform import Uniform
    from gflownet.evaluation import exact_distribution, exact_log_p
    from gflownet.flows.flows import Flows
    from gflownet.gflownet import GFlowNet
    from gflownet.model import Model
    from gflownet.networks import Stacked
    from gflownet.objectives import Objective
    from gflownet.objectives.detailed_balance import DetailedBalance
    from gflownet.objectives.flow_matching import FlowMatching
    from gflownet.objectives.forward_looking import ForwardLookingDB, ForwardLookingSubTB
    from gflownet.objectives.modified_detailed_balance import ModifiedDetailedBalance
    from gflownet.objectives.soft_dqn import SoftDQN
    from gflownet.objectives.subtrajectory_balance import SubTrajectoryBalance
    from gflownet.objectives.trajectory_balance import TrajectoryBalance
    from gflownet.objectives.vargrad import VarGrad
    from gflownet.optimiser import Adam
    from gflownet.problem import DagProblem
    from gflownet.registry import register
    from gflownet.rewards.combine import MoleculeReward, Tempering
    from gflownet.rewards.expression import Expression
    from gflownet.rewards.trees import TreeReward
    from gflownet.sampling.sampler import sampler

__all__ = [
    "PPO",
    "Adam",
    "Bits",
    "BlockTrees",
    "DagEnv",
    "DagProblem",
    "DetailedBalance",
    "Enumeration",
    "Expression",
    "FlowMatching",
    "Flows",
    "ForwardLookingDB",
    "ForwardLookingSubTB",
    "GFlowNet",
    "GFlowNetRun",
    "HyperGrid",
    "Metropolis",
    "Model",
    "ModifiedDetailedBalance",
    "MoleculeReward",
    "Objective",
    "PolicyGradientRun",
    "Sets",
    "SoftDQN",
    "SoftPolicyGradient",
    "Stacked",
    "SubTrajectoryBalance",
    "Tempering",
    "TrajectoryBalance",
    "TreeReward",
    "Uniform",
    "VarGrad",
    "check_dag",
    "enumerate_dag",
    "exact_distribution",
    "exact_log_p",
    "load",
    "make_env",
    "register",
    "sampler",
    "train",
]

# where each name comes from: it is loaded when it is first used
_EXPORTS = {
    "DagEnv": "envs.core",
    "Bits": "envs.dag.bits",
    "check_dag": "envs.dag.check_dag",
    "Enumeration": "envs.dag.enumeration",
    "enumerate_dag": "envs.dag.enumeration",
    "HyperGrid": "envs.dag.hypergrid",
    "Sets": "envs.dag.sets",
    "BlockTrees": "envs.molecules.block_trees",
    "GFlowNetRun": "experiments.api",
    "PolicyGradientRun": "experiments.api",
    "Metropolis": "gflownet.baselines.metropolis",
    "PPO": "gflownet.baselines.ppo",
    "SoftPolicyGradient": "gflownet.baselines.soft_pg",
    "Uniform": "gflownet.baselines.uniform",
    "exact_distribution": "gflownet.evaluation",
    "exact_log_p": "gflownet.evaluation",
    "Flows": "gflownet.flows.flows",
    "GFlowNet": "gflownet.gflownet",
    "Model": "gflownet.model",
    "Stacked": "gflownet.networks",
    "Objective": "gflownet.objectives",
    "DetailedBalance": "gflownet.objectives.detailed_balance",
    "FlowMatching": "gflownet.objectives.flow_matching",
    "ForwardLookingDB": "gflownet.objectives.forward_looking",
    "ForwardLookingSubTB": "gflownet.objectives.forward_looking",
    "ModifiedDetailedBalance": "gflownet.objectives.modified_detailed_balance",
    "SoftDQN": "gflownet.objectives.soft_dqn",
    "SubTrajectoryBalance": "gflownet.objectives.subtrajectory_balance",
    "TrajectoryBalance": "gflownet.objectives.trajectory_balance",
    "VarGrad": "gflownet.objectives.vargrad",
    "Adam": "gflownet.optimiser",
    "DagProblem": "gflownet.problem",
    "register": "gflownet.registry",
    "MoleculeReward": "gflownet.rewards.combine",
    "Tempering": "gflownet.rewards.combine",
    "Expression": "gflownet.rewards.expression",
    "TreeReward": "gflownet.rewards.trees",
    "sampler": "gflownet.sampling.sampler",
}


def train(
    env: str | Callable[..., DagEnv],
    objective: str | Objective | type[Objective],
    out: Path | str | None = None,
    **settings: Any,
) -> GFlowNetRun:
    """Train a sampler, as `gflownet train` does: same settings, same recipes, same bytes.

    Args:
        env: hypergrid, bits, sets, molecules, file.py:make, or a function of an imported module that makes one.
        objective: an objective or baseline from `gflownet list`, file.py:objective, or an object such as
            `gflownet.TrajectoryBalance()`.
        out: the run folder; None: a temporary folder. With resume=True a run of the same settings that is there is continued,
            bit for bit, or loaded when it is finished.
        settings: flags of `gflownet train ENV --objective NAME --help` with underscores, e.g. states=10_000, reward="qed*sa".

    Returns:
        The run: metrics, theta, curves(), evaluate(), and sample() for molecules.

    Raises:
        UserError: a setting is unknown or outside its range.
    """
    from experiments.api import train_gflownet

    return train_gflownet(env, objective, out, **settings)


def load(folder: Path | str, trust: bool = False) -> PolicyGradientRun | GFlowNetRun:
    """Open a run folder.

    Args:
        folder: made by `train` or by the command line.
        trust: execute the files that the run names (rewards, environments) even if they changed or are not yours.

    Returns:
        The run.

    Raises:
        UserError: there is no run in the folder.
    """
    from experiments.api import load

    return load(folder, trust)


def make_env(name: str | Callable[..., DagEnv], device: str = "cpu", **settings: Any) -> DagEnv:
    """Make an environment by name.

    Args:
        name: as for `train`.
        device: where tensors live.
        settings: flags of the environment with underscores, e.g. ndim=2, height=8, or reward="qed*sa".

    Returns:
        The environment, for `DagProblem`, `check_dag` and `enumerate_dag`.

    Raises:
        UserError: there is no such environment, or a setting is unknown or outside its range.
    """
    from experiments.api import make_dag_env

    return make_dag_env(name, device, **settings)


if not TYPE_CHECKING:  # a type checker then knows which names there are

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _EXPORTS:
            raise AttributeError(f"module 'gflownet' has no attribute {name!r}")
        return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
