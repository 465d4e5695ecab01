"""`RewardCalls`: the one place where rewards are called and counted.

    a call       an object handed to the reward: the function of a file, RDKit's terms, a proxy, or an environment's own reward
    a cache hit  an object whose reward was known, so that nothing was called

An object is counted before the call, so that one whose reward fails is counted too. What calls a reward otherwise (with a time
limit, again after a failure, elsewhere) takes the place of `RewardCalls.__call__`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sized
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # worker processes of RDKit's terms import this, and need no torch
    from torch import Tensor

    from envs.core import DagEnv

Batch = TypeVar("Batch", bound=Sized)
Result = TypeVar("Result")


class BudgetSpent(Exception):
    """An object's reward is not known, and the budget allows no further call."""


class RewardCalls:
    """Calls rewards, and counts.

    Attributes:
        of_user: whether the reward is the user's own code, which may be expensive.
        around: a context manager that each call is made in.
        calls: objects handed to the reward.
        cache_hits: objects whose reward was known.
        seconds: time in the reward.
        failure: why the last molecule failed that did.
    """

    def __init__(self) -> None:
        self.of_user = False
        self.around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
        self.calls, self.cache_hits, self.seconds = 0, 0, 0.0
        self.failure = ""

    def __call__(self, reward: Callable[[Batch], Result], batch: Batch, n: int | None = None) -> Result:
        """Call a reward of a batch of objects.

        Args:
            reward: the function.
            batch: the objects.
            n: how many calls this is; None: one for each object.
        """
        self.calls += len(batch) if n is None else n
        begun = time.perf_counter()
        try:
            with self.around():
                return reward(batch)
        finally:
            self.seconds += time.perf_counter() - begun

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"calls": self.calls, "cache_hits": self.cache_hits, "seconds": self.seconds}

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Go on counting from `numbers()`.

        Raises:
            ValueError: they are not what `numbers` gives.
        """
        calls, hits, seconds = (numbers.get(name) for name in ("calls", "cache_hits", "seconds"))
        if type(calls) is not int or type(hits) is not int or type(seconds) is not float or min(calls, hits, seconds) < 0:
            raise ValueError(f"got {dict(numbers)!r:.100}, expected calls, cache_hits and seconds")
        self.calls, self.cache_hits, self.seconds = calls, hits, seconds


class CountedRewards:
    """An environment whose rewards are called through `calls`; every other member is that of `env`."""

    def __init__(self, env: DagEnv, calls: RewardCalls) -> None:
        self._env, self._calls = env, calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied there is no `_env`
            raise AttributeError(name)
        member = getattr(self._env, name)
        return partial(self._calls, member) if name == "log_reward_partial" else member

    def log_reward(self, obs: Tensor) -> Tensor:
        """log R of finished objects, [M]."""
        return self._calls(self._env.log_reward, obs)
