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
    from pathlib import Path

    from experiments.api import GFlowNetRun, PolicyGradientRun

_EXPORTS = {
    "HyperGrid": "envs.dag.hypergrid",
    "enumerate_dag": "envs.dag.enumeration",
    "BlockTrees": "envs.molecules.block_trees",
    "Adam": "gflownet.optimiser",
    "Flows": "gflownet.flows.flows",
    "GFlowNet": "gflownet.gflownet",
    "DagProblem": "gflownet.problem",
    "Model": "gflownet.model",
    "Stacked": "gflownet.networks",
    "sampler": "gflownet.sampling.sampler",
    "DetailedBalance": "gflownet.objectives.detailed_balance",
    "FlowMatching": "gflownet.objectives.flow_matching",
    "ForwardLookingDB": "gflownet.objectives.forward_looking",
    "ForwardLookingSubTB": "gflownet.objectives.forward_looking",
    "ModifiedDetailedBalance": "gflownet.objectives.modified_detailed_balance",
    "SoftDQN": "gflownet.objectives.soft_dqn",
    "SubTrajectoryBalance": "gflownet.objectives.subtrajectory_balance",
    "TrajectoryBalance": "gflownet.objectives.trajectory_balance",
    "VarGrad": "gflownet.objectives.vargrad",
    "Expression": "gflownet.rewards.expression",
    "register": "gflownet.registry",
}
__all__ = [*_EXPORTS, "load", "train"]


def train(env: str, objective: str, out: Path | str | None = None, **settings: Any) -> GFlowNetRun:
    """Train a sampler, as `gflownet train` does: same settings, same recipes, same bytes.

    Args:
        env: hypergrid, bits, sets, molecules, or file.py:make.
        objective: an objective or baseline from `gflownet list`, or file.py:objective.
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


def load(folder: Path | str) -> PolicyGradientRun | GFlowNetRun:
    """Open a run folder.

    Args:
        folder: made by `train` or by the command line.

    Returns:
        The run.

    Raises:
        UserError: there is no run in the folder.
    """
    from experiments.api import load

    return load(folder)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'gflownet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
