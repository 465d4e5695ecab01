"""The reward of a run: its calls counted, what checkpoints hold of it, and how many calls an evaluation may make.

A reward of the user's is expensive. So evaluations of molecules that it scores use molecules scored before, but for
--evaluation-calls; checkpoints hold what it said, and no resumed run asks again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from envs.core import DagEnv
from envs.dag.enumeration import Enumeration
from envs.molecules.block_trees import BlockTrees
from experiments.cli.errors import UserError
from experiments.cli.load import short_name
from experiments.cli.stdout import stdout_to_stderr
from experiments.molecules.config import tree_reward
from experiments.oracle.runner import Runner
from gflownet.problem import DagProblem
from gflownet.rewards.calls import CountedRewards, RewardCalls

if TYPE_CHECKING:
    from experiments.gfn.budget import Account

SCORED, TRUTH = "scored/", "truth/"  # prefixes of tensors
META = "reward"
DESCRIPTIONS = {
    "oracle/calls": "Objects handed to the reward so far, by all seeds together, evaluations included.",
    "oracle/cache_hits": "Objects so far whose reward was known, so that the reward was not called.",
    "time/oracle_seconds": "Seconds in the reward so far.",
}


def counted(env: DagEnv, of_user: bool, noted: bool = False) -> tuple[DagEnv, RewardCalls]:
    """The environment with counted rewards, and the count.

    of_user: the environment or its reward is code of the user's. A reward of molecules knows that itself, and notes what it
        was asked, as every reward of molecules does if `noted`.
    """
    reward = tree_reward(env)
    calls = RewardCalls() if reward is None else reward.calls
    own = reward is not None and bool(reward.reward.expression.functions)
    if of_user or own:
        calls.of_user, calls.around = True, stdout_to_stderr
    if reward is not None:
        if own or noted:
            reward.note()
        return env, calls
    if isinstance(env, BlockTrees):
        return env.with_reward(partial(calls, env.reward)), calls
    around: Any = CountedRewards(env, calls)
    return around, calls


def account(problem: DagProblem) -> Account | None:
    """What a run asks of a reward of molecules; None where it is not noted."""
    reward = tree_reward(problem.env)
    if reward is None or reward.ledger is None:
        return None
    from experiments.gfn.budget import Account

    return Account(reward.ledger, problem.calls, reward.reward.tempering)


def row(calls: RewardCalls) -> dict[str, int | float]:
    """The metrics."""
    return {"oracle/calls": calls.calls, "oracle/cache_hits": calls.cache_hits, "time/oracle_seconds": round(calls.seconds, 3)}


def summary(problem: DagProblem, wall: float | None = None) -> str:
    """What was asked of the reward, for people. wall: seconds of the run."""
    noted, lines = account(problem), [count(problem.calls)]
    if noted is not None:
        lines[0] += f"; {noted.summary()}"
    for oracle in runners(problem):
        done = oracle.counts
        waited = f", waited for {done.idle:.1f} s" + (f" ({done.idle / wall:.0%} of the run)" if wall else "")
        answered = f"{done.asked:,} asked, {done.cached:,} from the cache"
        lines.append(f"{short_name(oracle.spec.name)}: {answered}; {done.seconds:.1f} s of computing{waited}")
    return "\n".join(lines)


def count(calls: RewardCalls) -> str:
    """One line for people."""
    return f"reward: {calls.calls:,} calls, {calls.cache_hits:,} cache hits, {calls.seconds:.1f} s"


def references(problem: DagProblem, quiet: bool) -> str:
    """The rewards of five known drugs, as a table; "" where there are none. `quiet`: only if they are calls, which are made."""
    reward = tree_reward(problem.env)
    if reward is None or (quiet and reward.ledger is None):
        return ""
    from experiments.gfn import budget

    return budget.references(problem)


def budget(problem: DagProblem, calls: int | None) -> int | None:
    """Calls that evaluations may make in the whole run, None without limit. calls: --evaluation-calls."""
    reward = tree_reward(problem.env)
    if calls is None and reward is not None and reward.ledger is not None:
        return 0
    return calls


def finish(problem: DagProblem) -> None:
    """Score what was started, as far as the budget goes."""
    if (reward := tree_reward(problem.env)) is not None:
        reward.finish()


def spent(held: Mapping[str, Tensor], calls: int | None) -> bool:
    """Whether a checkpoint's ledger has as many molecules as the budget allows. calls: the budget."""
    return calls is not None and len(held.get(SCORED + "values", ())) >= calls


def begin_run(problem: DagProblem, id: str | None) -> None:
    """Tell the oracles whose answers are the run's own."""
    for oracle in runners(problem):
        oracle.cache.run = id or oracle.cache.run


def runners(problem: DagProblem) -> list[Runner]:
    """The user's functions and programs that score molecules."""
    reward = tree_reward(problem.env)
    return [] if reward is None else [oracle for oracle in reward.reward.quantities.oracles if isinstance(oracle, Runner)]


@contextlib.contextmanager
def closing(problem: DagProblem) -> Iterator[None]:
    """End the processes of the reward at the end of the block; nothing that was answered is lost."""
    try:
        yield
    finally:
        if (reward := tree_reward(problem.env)) is not None:
            reward.reward.quantities.close()


# -- checkpoints


def tensors(problem: DagProblem, truth: Enumeration | None) -> dict[str, Tensor]:
    """What a checkpoint holds: the cache of a reward of molecules, and log R of all objects where the user's code said it."""
    reward = tree_reward(problem.env)
    held = {} if reward is None else {SCORED + name: x for name, x in reward.scored().items()}
    if truth is not None and problem.calls.of_user:
        held[TRUTH + "log_reward"] = truth.log_reward
    return held


def without(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that have nothing to do with the reward."""
    return {name: x for name, x in held.items() if not name.startswith((SCORED, TRUTH))}


def restore_cache(problem: DagProblem, held: Mapping[str, Tensor]) -> None:
    """Put the cache or the ledger of a checkpoint back. UserError (exit code 3) where it does not fit."""
    reward = tree_reward(problem.env)
    scored = {name.removeprefix(SCORED): x for name, x in held.items() if name.startswith(SCORED)}
    if reward is None or not set(reward.scored()) <= set(scored):  # none, or of a version without a ledger
        return
    try:
        reward.restore(scored)
    except ValueError as error:
        raise UserError(f"the checkpoint does not fit this reward: {error}; was a file changed since?", exit_code=3) from error


def restore(problem: DagProblem, held: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Go on where a checkpoint stopped, whatever was asked since. UserError (exit code 3) where it does not fit."""
    restore_cache(problem, held)
    visited = meta["states"] * len(problem.seeds)  # of a version that did not count, as it was documented there
    numbers = meta.get(META, {"calls": visited, "cache_hits": 0, "seconds": 0.0})
    restore_count(problem.calls, numbers)
    if (reward := tree_reward(problem.env)) is not None and reward.ledger:  # of a version without one it is empty
        problem.calls.calls = len(reward.ledger)  # an iteration that was stopped asks again, of what it counted already


def restore_count(calls: RewardCalls, numbers: Any) -> None:
    """Go on counting. UserError (exit code 3) where these are no counts."""
    try:
        calls.restore(numbers)
    except (ValueError, AttributeError) as error:
        raise UserError(f"the checkpoint holds no count of reward calls: {error}; was a file changed?", exit_code=3) from error


def known(held: Mapping[str, Tensor]) -> Tensor | None:
    """log R of all objects, where a checkpoint holds it."""
    found = held.get(TRUTH + "log_reward")
    return found if found is not None and found.dtype == torch.float64 and found.dim() == 1 else None


def of_checkpoint(known: Tensor, obs: Tensor) -> Tensor:
    """log R of all objects, obs, from a checkpoint. UserError (exit code 3) where it has another number of them."""
    if len(known) != len(obs):
        raise UserError(f"the checkpoint has {len(known):,} rewards for {len(obs):,} objects: was a file changed?", exit_code=3)
    return known.to(obs.device)
