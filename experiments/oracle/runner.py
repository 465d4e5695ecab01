"""`Runner`: an `Oracle` whose reward is run by any `concurrent.futures.Executor`.

submit(smiles)    of those not under way: look them up in the cache; hand the rest to the executor, a job for each batch
a job is done     its answers go to the cache, in whatever thread the executor says so
a job is lost     (its worker died, the pool broke, it was cancelled): handed over again, RESENDS times, then an error
runner(smiles)    submit, wait for all, make them durable, return them in order
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from typing import Any

from experiments.cli.errors import UserError
from experiments.oracle.cache import AnswerCache
from experiments.oracle.evaluate import Evaluated, Job, end_processes, evaluate
from experiments.oracle.spec import RewardSpec
from gflownet.rewards.oracle import Scored

RESENDS = 4
LOOK = 1.0  # seconds between looks whether the executor is still there


@dataclass
class RunnerCounts:
    """What a runner has done.

    Attributes:
        asked: molecules handed to the reward, again each time where one was asked again.
        cached: molecules whose answer was in the cache.
        status: answers by status, those of the cache included.
        seconds: time in the reward, summed over its processes.
        idle: seconds that the caller has waited for answers.
    """

    asked: int = 0
    cached: int = 0
    status: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    idle: float = 0.0


class Runner:
    """Scores molecules by a user's reward. It is a context manager; `close` ends what it has started.

    Args:
        spec: the reward.
        executor: runs the jobs, and stays open; or a function that makes an executor, called again where one breaks.
        cache: answers so far.
        timeout, retries, recycle, batch: see `OracleSettings`.
        check: raises UserError where the executor will never answer again; called while a caller waits.
        after: called by `close` at last.
    """

    def __init__(
        self,
        spec: RewardSpec,
        executor: Executor | Callable[[], Executor],
        cache: AnswerCache,
        *,
        timeout: float = 0.0,
        retries: int = 0,
        recycle: int = 0,
        batch: int = 1,
        check: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec, self.counts, self.cache = spec, RunnerCounts(), cache
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = executor if isinstance(executor, Executor) else executor()
        self._owner, self._limits, self._batch, self._after = secrets.token_hex(8), (timeout, retries, recycle), batch, after
        self._check = check
        self._changed = threading.Condition()
        self._answered: dict[str, Scored] = {}  # and not yet collected
        self._under_way: set[str] = set()
        self._missing: set[str] = set()  # what the caller waits for
        self._lost: list[tuple[tuple[str, ...], int, str]] = []  # molecules, how often, why
        self._futures: set[Future[Any]] = set()
        self._closed = False

    def load(self) -> None:
        """Load the reward in one process and see that it can be. UserError (exit code 6) where it cannot."""
        for left in reversed(range(RESENDS)):
            try:
                executor = self._executor
                problem = self._result(executor.submit(evaluate, self._job((), left))).problem
            except UserError:
                raise
            except Exception as error:
                if not left:
                    raise UserError(f"the executor could not load the reward: {_short(error)}", exit_code=6) from error
                self._renew(executor, error)
            else:
                if problem:
                    raise UserError(problem, exit_code=6)
                return

    def submit(self, smiles: Sequence[str]) -> None:
        """Start to score molecules and return at once. Those that are under way already are left alone."""
        with self._changed:
            fresh = [s for s in dict.fromkeys(smiles) if s not in self._under_way and s not in self._answered]
            known = self.cache.get(fresh)
            self._answered |= known
            self.counts.cached += len(known)
            self.counts.status.update(scored.status for scored in known.values())
            rest = [s for s in fresh if s not in known]
            self._under_way.update(rest)
        for i in range(0, len(rest), self._batch):
            self._send(tuple(rest[i : i + self._batch]), 1)

    def __call__(self, smiles: Sequence[str]) -> list[Scored]:
        """Score molecules, those submitted before among them, and wait for all: one for each, in order."""
        self.wait(smiles)
        return self.collected(smiles)

    def wait(self, smiles: Sequence[str], timeout: float | None = None) -> bool:
        """Submit molecules and wait until all are answered, for at most `timeout` seconds; whether they are."""
        begun = time.monotonic()
        self.submit(smiles)
        try:
            with self._changed:
                self._missing = self._under_way.intersection(smiles)
            while True:
                self._send_lost()
                with self._changed:
                    left = LOOK if timeout is None else begun + timeout - time.monotonic()
                    if not self._missing or left <= 0:
                        return not self._missing
                    if not self._lost:
                        self._changed.wait(min(left, LOOK))
                self._check()
        finally:
            self.counts.idle += time.monotonic() - begun

    def collected(self, smiles: Sequence[str]) -> list[Scored]:
        """The answers of molecules that were waited for, in order, durable in the cache from now on."""
        self.cache.flush()
        with self._changed:
            scored = [self._answered[s] for s in smiles]
            for s in smiles:
                self._answered.pop(s, None)
        return scored

    def close(self) -> None:
        """End its processes at once; nothing that was answered is lost."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(UserError):  # where the executor is gone there is nothing to cancel
                self._check()
                for future in list(self._futures):
                    future.cancel()
            end_processes(self._owner)
            if self._make is not None:
                self._executor.shutdown(wait=False, cancel_futures=True)
            self._after()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _result(self, future: Future[Any]) -> Evaluated:
        while not future.done():
            self._check()
            wait([future], LOOK)
        return future.result()

    def _job(self, smiles: tuple[str, ...], turn: int) -> Job:
        return Job(self._owner, self.spec, smiles, *self._limits, turn)

    def _send(self, smiles: tuple[str, ...], turn: int) -> None:
        executor = self._executor
        try:
            future = executor.submit(evaluate, self._job(smiles, turn))
        except Exception as error:
            self._renew(executor, error)
            self._lose(smiles, turn, error)
        else:
            self._futures.add(future)
            future.add_done_callback(lambda future: self._done(executor, future, smiles, turn))

    def _send_lost(self) -> None:
        with self._changed:
            lost, self._lost = self._lost, []
        for smiles, turn, why in lost:
            if turn <= RESENDS:
                self._send(smiles, turn + 1)
            else:
                message = f"its worker was lost {turn} times: {why}"
                self._answer(smiles, Evaluated([Scored.failed("error", message)] * len(smiles), 0, 0.0))

    def _done(self, executor: Executor, future: Future[Any], smiles: tuple[str, ...], turn: int) -> None:
        self._futures.discard(future)
        if self._closed:  # its processes were ended, which says nothing of a molecule
            return
        try:
            evaluated = future.result()
        except BaseException as error:  # of the executor: `evaluate` catches those of the reward
            self._renew(executor, error)
            self._lose(smiles, turn, error)
        else:
            self._answer(smiles, evaluated)

    def _answer(self, smiles: tuple[str, ...], evaluated: Evaluated) -> None:
        self.cache.put(zip(smiles, evaluated.scored, strict=True), evaluated.seconds / len(smiles))
        with self._changed:
            self._answered.update(zip(smiles, evaluated.scored, strict=True))
            self._under_way.difference_update(smiles)
            self.counts.asked += evaluated.asked
            self.counts.seconds += evaluated.seconds
            self.counts.status.update(scored.status for scored in evaluated.scored)
            self._missing.difference_update(smiles)
            if not self._missing:
                self._changed.notify_all()

    def _lose(self, smiles: tuple[str, ...], turn: int, error: BaseException) -> None:
        with self._changed:
            self._lost.append((smiles, turn, _short(error)))
            self._changed.notify_all()

    def _renew(self, broken: Executor, error: BaseException) -> None:
        """Another executor in place of one that is broken."""
        with self._changed:
            if self._make is None or not isinstance(error, BrokenExecutor) or broken is not self._executor:
                return
            self._executor = self._make()
        broken.shutdown(wait=False, cancel_futures=True)


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
