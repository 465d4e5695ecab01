"""Environments by name, and the exact values of those that have them.

gridworld, gridworld:MAP.txt, garnet, garnet:SEED, lqr       on tensors, with exact values
HalfCheetah-v5, ...                                          the batched MuJoCo path
any other id                                                 a Gymnasium environment
path/to/file.py:name                                         a function that returns one of the project's or Gymnasium's
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from envs.core import Env
from envs.mdp.exact import Exact, ExactLQR, ExactMDP
from envs.mdp.lqr import LQR, double_integrator
from envs.mdp.tabular import FiniteMDP, garnet, gridworld
from envs.raised import raised
from experiments.cli.errors import UserError
from experiments.cli.load import load_object, read_file, refuse_import, short_name
from experiments.pg.environments import OWN
from pgrl.nets import MLP, TabularNet
from pgrl.policy import Policy


def make_env(name: str, horizon: int | None = None, device: str = "cpu") -> Env:
    """The environment called `name`. UserError when there is none.

    horizon  the length of its episodes, where it has none of its own
    """
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
        return _gymnasium(name, horizon)
    except (UserError, ImportError, KeyboardInterrupt):
        raise
    except BaseException as error:  # of an environment that another package registers, or of a user
        if isinstance(error, ValueError):
            raise UserError(str(error)) from error
        raise UserError(f"{name} could not be made: it {raised(error)}", exit_code=5) from error


def check_user_env(name: str, horizon: int | None, device: str) -> None:
    """Hold an environment of a user to a short `check-env`. UserError (exit code 5) for a check that fails."""
    import gymnasium

    from envs.check import ContractError, check_briefly
    from envs.mdp.mujoco_tasks import TASKS

    spec = gymnasium.registry.get(name.split(":")[-1])
    if name.partition(":")[0] in OWN or name.rpartition("-v")[0] in TASKS:
        return
    if spec is not None and str(spec.entry_point).startswith("gymnasium.envs."):
        return
    env: Any = make_env(name, horizon, device)
    try:
        check_briefly(env, device=device)
    except ContractError as error:
        if error.name in ("finite obs", "finite reward", "overshoot"):  # training names the seed, the step and the action
            return
        raise UserError(f"the environment {short_name(name)}: {error} `pgrl check-env` tests more", exit_code=5) from error
    if hasattr(env, "close"):
        env.close()


def _map(file: str) -> str:
    try:
        return read_file(file).decode()
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the map {file}: {error}", getattr(error, "exit_code", None)) from error


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
        if isinstance(made, gymnasium.Env):
            made.close()
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{name} could not make an environment: it {raised(error)}") from error
    if isinstance(made, gymnasium.Env):
        from envs.mdp.gymnasium_env import GymnasiumEnv

        return _with_length(GymnasiumEnv, make, horizon)
    if not isinstance(made, Env):
        raise UserError(
            f"the environment function returned a {type(made).__name__}, expected an envs.core.Env or a gymnasium.Env"
        )
    return made


def _with_length(make: Callable[..., Env], given: Any, horizon: int | None) -> Env:
    """A Gymnasium environment with its own time limit, or with `horizon` where it has none."""
    try:
        return make(given)
    except ValueError:
        if horizon is None:
            raise
        return make(given, horizon=horizon)


def _gymnasium(name: str, horizon: int | None) -> Env:
    import gymnasium

    from envs.mdp.mujoco_tasks import TASKS

    base, _, version = name.rpartition("-v")
    if base in TASKS:
        from envs.mdp.mujoco_env import MujocoEnv

        return MujocoEnv(name)
    if ":" in name:  # module:Id, and Gymnasium imports the module
        refuse_import(name)
    if name not in gymnasium.registry and not version.isdigit():
        known = [*OWN, *gymnasium.registry]
        close = difflib.get_close_matches(name, known, 3, 0.4)
        raise UserError(f"no environment is called {name!r}; close: {', '.join(close) or 'none'}. `pgrl list` shows all")
    from envs.mdp.gymnasium_env import GymnasiumEnv

    return _with_length(GymnasiumEnv, name, horizon)


def exact_values(env: Env, policy: Policy, discount: float) -> Exact | None:
    """The exact values of `policy` on `env`, or None where they are not known (or the table of policies is not small)."""
    if discount >= 1:
        return None
    if isinstance(env, FiniteMDP) and isinstance(policy.net, TabularNet | MLP):
        states = torch.arange(env.n_states, device=env.start.device)
        return ExactMDP(env, lambda theta: policy.log_probs_at(theta, states), discount)
    linear = isinstance(policy.net, MLP) and not (policy.net.hidden or policy.net.bias or policy.normalised)
    if isinstance(env, LQR) and linear:
        return ExactLQR(env, policy.gain, discount)
    return None
