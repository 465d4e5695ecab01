"""Policy-gradient agents as pure functions: policies, estimators, schedules, agents.

    run = pgrl.train("n-pg-igt", env="gridworld", seeds=10, env_steps=60_000)
    run.metrics["eval/gap"]

Importing it registers our environments with Gymnasium: `gymnasium.make("pgrl/GridWorld-v0")`.
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
                f"{found} shadows the package `{name}` of pgrl: rename that folder, or start Python in another one"
            )


_refuse_shadows()

import envs.registration  # noqa: E402, F401  Gymnasium loads no plugins since 1.0

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envs.check import check_env
    from envs.core import Env
    from envs.mdp.exact import ExactLQR, ExactMDP
    from experiments.api import GFlowNetRun, PolicyGradientRun
    from pgrl import check
    from pgrl.agent import Agent, World
    from pgrl.agents.adam_pg import AdamPG
    from pgrl.agents.harpg import HARPG
    from pgrl.agents.n_harpg import NHARPG
    from pgrl.agents.n_mpg import NMPG
    from pgrl.agents.n_pg import NPG
    from pgrl.agents.n_pg_igt import NPGIGT
    from pgrl.agents.reinforce import REINFORCE
    from pgrl.baselines import baseline_for
    from pgrl.gradients import Estimator, effective_sample_size, importance_weights, weighted_gradient
    from pgrl.policy import Policy, policy_for
    from pgrl.problem import Problem
    from pgrl.registry import register
    from pgrl.theory import ProblemConstants, suggest_horizon

__all__ = [
    "HARPG",
    "NHARPG",
    "NMPG",
    "NPG",
    "NPGIGT",
    "REINFORCE",
    "AdamPG",
    "Agent",
    "Env",
    "Estimator",
    "ExactLQR",
    "ExactMDP",
    "GFlowNetRun",
    "Policy",
    "PolicyGradientRun",
    "Problem",
    "ProblemConstants",
    "World",
    "baseline_for",
    "check",
    "check_env",
    "effective_sample_size",
    "importance_weights",
    "load",
    "make_env",
    "policy_for",
    "register",
    "suggest_horizon",
    "train",
    "weighted_gradient",
]

# where each name comes from: it is loaded when it is first used
_EXPORTS = {
    "check_env": "envs.check",
    "Env": "envs.core",
    "ExactLQR": "envs.mdp.exact",
    "ExactMDP": "envs.mdp.exact",
    "GFlowNetRun": "experiments.api",
    "PolicyGradientRun": "experiments.api",
    "Agent": "pgrl.agent",
    "World": "pgrl.agent",
    "AdamPG": "pgrl.agents.adam_pg",
    "HARPG": "pgrl.agents.harpg",
    "NHARPG": "pgrl.agents.n_harpg",
    "NMPG": "pgrl.agents.n_mpg",
    "NPG": "pgrl.agents.n_pg",
    "NPGIGT": "pgrl.agents.n_pg_igt",
    "REINFORCE": "pgrl.agents.reinforce",
    "baseline_for": "pgrl.baselines",
    "Estimator": "pgrl.gradients",
    "effective_sample_size": "pgrl.gradients",
    "importance_weights": "pgrl.gradients",
    "weighted_gradient": "pgrl.gradients",
    "Policy": "pgrl.policy",
    "policy_for": "pgrl.policy",
    "Problem": "pgrl.problem",
    "register": "pgrl.registry",
    "ProblemConstants": "pgrl.theory",
    "suggest_horizon": "pgrl.theory",
}


def train(
    algo: str | Agent | type[Agent],
    env: str | Callable[[], Any] = "gridworld",
    out: Path | str | None = None,
    **settings: Any,
) -> PolicyGradientRun:
    """Train an agent, as `pgrl train` does: same settings, same recipes, same bytes.

    Args:
        algo: a name from `pgrl list`, file.py:agent, or an agent such as `pgrl.NPG(step_size=0.1)`.
        env: a name from `pgrl list`, a Gymnasium id, file.py:make, or a function of an imported module that makes one.
        out: the run folder; None: a temporary folder. With resume=True a run of the same settings that is there is continued,
            bit for bit, or loaded when it is finished.
        settings: flags of `pgrl train ALGO --help` with underscores, e.g. seeds=10, step_size=0.1, quiet=True.

    Returns:
        The run: metrics, theta, curves(), evaluate().

    Raises:
        UserError: a setting is unknown or outside its range.
    """
    from experiments.api import train_policy_gradient

    return train_policy_gradient(algo, env, out, **settings)


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


def make_env(name: str, horizon: int | None = None, device: str = "cpu") -> Env:
    """Make an environment by name.

    Args:
        name: as for `train`.
        horizon: steps after which an episode is cut; None: the environment's own.
        device: where tensors live, for environments that are tensor programs.

    Returns:
        The environment, for `Problem`, `check_env` and `policy_for`.

    Raises:
        UserError: there is no such environment.
    """
    from experiments.pg.build import make_env

    return make_env(name, horizon, device)


if not TYPE_CHECKING:  # a type checker then knows which names there are

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name == "check":
            return import_module("pgrl.check")
        if name not in _EXPORTS:
            raise AttributeError(f"module 'pgrl' has no attribute {name!r}")
        return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
