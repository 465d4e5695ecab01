"""`make_oracle`: the runner of the reward that a formula or --reward-command names."""

from __future__ import annotations

import secrets
import shutil
from concurrent.futures import Executor
from pathlib import Path

from experiments.cli.errors import UserError
from experiments.oracle.cache import AnswerCache, cache_path
from experiments.oracle.executors import Place, executor_of
from experiments.oracle.runner import Runner
from experiments.oracle.settings import OracleSettings
from experiments.oracle.spec import RewardSpec, command_spec, function_spec
from gflownet.rewards.oracle import COMMAND


def make_oracle(
    name: str, settings: OracleSettings, workers: int = 1, run: str = "", executor: Executor | None = None
) -> Runner:
    """A runner that has loaded its reward. `close` ends its processes, its cache and the executor, if that was made here.

    Args:
        name: file.py:function, or "command" for `settings.reward_command`.
        settings: how it is run.
        workers: rewards that run at once on this machine, at least 1.
        run: id of the run, whose own failed answers are not asked again; "": one that nobody else has.
        executor: in place of the one that the settings name.

    Raises:
        UserError: the reward or the cache cannot be used, in one sentence.
    """
    spec = spec_of(name, settings)
    if spec.words and executor is None and settings.executor == "processes" and shutil.which(spec.words[0]) is None:
        why = "Permission denied" if Path(spec.words[0]).exists() else "No such file or program"
        raise UserError(f"the command {spec.words[0]} cannot be started: {why}; correct --reward-command")
    cache = AnswerCache(cache_path(settings.reward_cache), spec.key, spec.name, run or secrets.token_hex(8))
    try:
        place = executor_of(settings.executor, max(1, workers)) if executor is None else Place(executor, _nothing, _nothing)
    except BaseException:
        cache.close()
        raise

    def after() -> None:
        cache.close()
        place.end()

    runner = Runner(
        spec,
        place.executor,
        cache,
        timeout=settings.reward_timeout,
        retries=settings.reward_retries,
        recycle=settings.reward_recycle,
        batch=settings.reward_batch,
        check=place.check,
        after=after,
    )
    try:
        runner.load()
    except BaseException:
        runner.close()
        raise
    return runner


def _nothing() -> None:
    pass


def spec_of(name: str, settings: OracleSettings) -> RewardSpec:
    """The reward file.py:function, or the command. UserError where it cannot be read, or may not be executed."""
    if name != COMMAND:
        return function_spec(name, settings.reward_version)
    if not settings.reward_command:
        raise UserError("the reward has the term command: give the program with --reward-command")
    return command_spec(settings.reward_command, settings.reward_version)
