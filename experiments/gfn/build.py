"""A DAG environment made and checked, and all of its states where they are few."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from envs.core import DagEnv, EnvironmentFault, RewardFault
from envs.dag.enumeration import Enumeration, enumerate_dag
from envs.dag.protocols import Indexed, offers
from envs.dag.search import NotADag, TooManyStates
from envs.molecules.block_trees import BlockTrees
from envs.molecules.counting import count_states
from envs.random import Rng
from experiments.cli.errors import UserError
from experiments.cli.load import short_name
from experiments.cli.stdout import stdout_to_stderr
from experiments.gfn.environments import find_env
from experiments.gfn.rewards import counted, of_checkpoint
from experiments.molecules.config import tree_reward

LIMIT = 2_000_000  # states that are enumerated for exact metrics
TREES = 10_000  # the same for molecules, whose rewards take longer; ten times as many with --metrics exact


def make_dag_env(name: str, settings: Any, device: str) -> DagEnv:
    """UserError for settings out of range, and where no action is valid at the source."""
    try:
        env = find_env(name).make(settings, device)
    except RewardFault:
        raise
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    rng = Rng(torch.zeros(1, dtype=torch.int64, device=device)).drawn(1, env.backend == "numpy")
    mask = env.reset(1, rng).action_mask
    if mask is None or not bool(mask.any()):
        raise UserError(f"{short_name(name)}: the action_mask of the source is {mask}, expected one [B, A] with a valid action")
    return env


@stdout_to_stderr()
def check_dag_env(name: str, settings: Any) -> list[str]:
    """The checks of the contract that an environment passes. UserError (exit code 1) for one that fails."""
    from envs.check import ContractError
    from envs.dag.check_dag import check_dag

    try:
        return check_dag(find_env(name).make(settings, "cpu"))
    except (ContractError, ValueError) as error:
        code = 1 if isinstance(error, ContractError) else 2
        raise UserError(f"{short_name(name)}: {error}", exit_code=code) from error


@stdout_to_stderr()
def check_user_env(name: str, device: str) -> int:
    """Hold an environment of a user to a short `check-env`; how often its reward was called for it.

    Raises UserError (exit code 5) for a check that fails.
    """
    from envs.check import ContractError
    from envs.dag.check_dag import check_dag_briefly

    if not name.partition(":")[0].endswith(".py"):
        return 0
    env, calls = counted(make_dag_env(name, find_env(name).settings(), device), of_user=True)
    try:
        check_dag_briefly(env, device=device)
    except ContractError as error:
        if error.name in ("finite obs", "finite reward", "overshoot"):  # training names the seed, the step and the action
            return calls.calls
        raise UserError(f"the environment {short_name(name)}: {error} `gflownet check-env` tests more", exit_code=5) from error
    return calls.calls


def truth(name: str, env: DagEnv, metrics: str, known: Tensor | None = None) -> Enumeration | None:
    """All states with the target distribution, where `metrics` ("auto", "exact" or "sampled") allows it.

    known: log R of all objects [K], where a checkpoint has them. Molecules that code of the user's scores are enumerated only
    where `metrics` is "exact", because each of them is a call.

    Raises UserError where `metrics` is "exact" and the space is too large, and for what is no DAG or has no reward.
    """
    reward = tree_reward(env)
    if metrics == "sampled" or (metrics == "auto" and reward is not None and reward.reward.expression.functions):
        return None

    try:
        if isinstance(env, BlockTrees):  # first: a step too far takes long
            count_states(env, TREES if metrics == "auto" else 10 * TREES)
        found = enumerate_dag(env, LIMIT, None if known is None else partial(of_checkpoint, known))
    except TooManyStates as error:
        if metrics == "exact":
            raise UserError(f"--metrics exact: {_size(env, error)}; use --metrics sampled") from error
        return None
    except NotADag as error:
        raise UserError(f"{short_name(name)}: {error}") from error
    except (RewardFault, EnvironmentFault):
        raise
    except ValueError as error:
        raise UserError(f"{short_name(name)}: {error}") from error
    refuse_bad_reward(env, found.obs[found.objects], found.log_reward)
    return found


def refuse_bad_reward(env: DagEnv, obs: Tensor, log_reward: Tensor) -> None:
    """UserError (exit code 5) where a log-reward is NaN or infinite, with the object."""
    bad = ~torch.isfinite(log_reward)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        what = env.describe(obs[at : at + 1])[0]
        raise UserError(f"log R is {float(log_reward[at])} at the object {what}, expected a finite number", exit_code=5)


def _size(env: Any, error: TooManyStates) -> str:
    many = offers(env, Indexed) and env.n_states > LIMIT
    return f"the space has {env.n_states:,} states, more than the {LIMIT:,} that are enumerated" if many else str(error)
