"""Environments by name, and the exact values of those that have them.

gridworld, gridworld:MAP.txt, garnet, garnet:SEED, lqr       tensor worlds with exact values
HalfCheetah-v5, ...                                          the batched MuJoCo path
any other id                                                 a Gymnasium environment
path/to/file.py:name                                         a function that returns one of the project's or Gymnasium's
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from envs.core import Env
from envs.mdp.exact import Exact, ExactLQR, ExactMDP
from envs.mdp.lqr import LQR, double_integrator
from envs.mdp.tabular import FiniteMDP, garnet, gridworld
from experiments.cli.errors import UserError
from pgrl.nets import MLP, TabularNet
from pgrl.policy import Policy

OWN = {
    "gridworld": "5×5 grid with walls, pits, slip and a goal, or your own map: gridworld:FILE",
    "garnet": "random finite MDP with 8 states and 3 actions, or another draw: garnet:SEED",
    "lqr": "linear-quadratic regulator, a double integrator",
}


def make_env(name: str, horizon: int | None = None, device: str = "cpu") -> Env:
    """The environment called `name`, its episodes cut at `horizon` where given. UserError when there is none."""
    kind, _, rest = name.partition(":")
    limit: dict[str, Any] = {} if horizon is None else {"horizon": horizon}
    try:
        if kind == "gridworld":
            return gridworld(_map(rest), device=device, **limit) if rest else gridworld(device=device, **limit)
        if kind == "garnet":
            return garnet(seed=_integer(name, rest), device=device, **limit)
        if kind == "lqr":
            return double_integrator(device=device, **limit)
        if kind.endswith(".py"):
            return _outside(name, horizon)
        return _gymnasium_world(name, horizon)
    except ValueError as error:
        raise UserError(str(error)) from error


def _map(file: str) -> str:
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the map {file}: {error}") from error


def _integer(name: str, text: str) -> int:
    if text and not text.isdigit():
        raise UserError(f"got environment {name!r}, expected garnet:SEED with a whole number")
    return int(text or 0)


@dataclass(frozen=True)
class FromFile:
    """A function in a file, by name: it can be sent to another process, which loads the file itself."""

    name: str

    def __call__(self) -> Any:
        return load_object(self.name)()


def _outside(name: str, horizon: int | None) -> Env:
    import gymnasium

    make = FromFile(name)
    try:
        made = make()
    except Exception as error:
        raise UserError(f"{name} could not make an environment: {type(error).__name__}: {error}") from error
    if isinstance(made, gymnasium.Env):
        from envs.mdp.gymnasium_env import GymnasiumEnv

        made.close()
        return GymnasiumEnv(make, horizon=horizon)
    if not isinstance(made, Env):
        raise UserError(
            f"the environment function returned a {type(made).__name__}, expected an envs.core.Env or a gymnasium.Env"
        )
    if horizon is not None:
        setattr(made, "horizon", horizon)  # noqa: B010  the protocol only reads it
    return made


def _gymnasium_world(name: str, horizon: int | None) -> Env:
    import gymnasium

    from envs.mdp.mujoco_tasks import TASKS

    base, _, version = name.rpartition("-v")
    if base in TASKS:
        from envs.mdp.mujoco_env import MujocoEnv

        return MujocoEnv(name, horizon=horizon)
    if name not in gymnasium.registry and not version.isdigit():
        known = [*OWN, *gymnasium.registry]
        close = difflib.get_close_matches(name, known, 3, 0.4)
        raise UserError(f"no environment is called {name!r}; close: {', '.join(close) or 'none'}. `pgrl list` shows all")
    from envs.mdp.gymnasium_env import GymnasiumEnv

    return GymnasiumEnv(name, horizon=horizon)


def load_object(name: str) -> Callable[..., Any]:
    """`path/to/file.py:name`. UserError when the file or the name is missing, or the file fails."""
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        path, attribute = name, ""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"file:{file.resolve()}", file)  # a name that hides no other module
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise UserError(f"{file} could not be loaded: {type(error).__name__}: {error}") from error
    public = [n for n in vars(module) if not n.startswith("_")]
    if not attribute or not hasattr(module, attribute):
        raise UserError(f"got {name!r}, expected {file}:NAME with NAME one of {', '.join(public)}")
    return getattr(module, attribute)


def absolute(value: Any) -> Any:
    """A file.py:name that is found from any folder; anything else as it is."""
    head, colon, tail = value.partition(":") if isinstance(value, str) else ("", "", "")
    return f"{Path(head).resolve()}{colon}{tail}" if head.endswith(".py") else value


def exact_values(env: Env, policy: Policy, discount: float) -> Exact | None:
    """The exact values of `policy` on `env`, or None where they are not known (or the table of policies is not small)."""
    if discount >= 1:
        return None
    if isinstance(env, FiniteMDP) and isinstance(policy.net, TabularNet | MLP):
        states = torch.arange(env.n_states, device=env.start.device)
        return ExactMDP(env, lambda theta: policy.log_probs_at(theta, states), discount)
    if isinstance(env, LQR) and isinstance(policy.net, MLP) and not policy.net.hidden and not policy.net.bias:
        return ExactLQR(env, policy.gain, discount)
    return None
