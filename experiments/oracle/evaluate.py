"""`evaluate`: scores the molecules of a `Job` in whatever process and thread an executor runs it.

    take a process of the reward that is free here, or start one
    ask it; a call that fails as a whole is repeated molecule by molecule, and a single molecule as often as allowed
    put it back, unless it has died or has answered as many calls as it may

So an executor only has to hand a job to a worker: the time limit and the death of a reward are dealt with beside the reward,
and the worker survives both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from experiments.oracle.host import Child, NotLoaded, ProcessGone, TimedOut
from experiments.oracle.protocol import CallFailed
from experiments.oracle.spec import RewardSpec
from gflownet.rewards.oracle import Scored

LOADING = 600.0  # the shortest limit for loading a reward, in seconds


@dataclass(frozen=True)
class Job:
    """Molecules to score.

    owner  names the processes that may score them, so that they can be ended together
    turn   tells a job from the same one handed over again, for executors that compute equal jobs once
    """

    owner: str
    spec: RewardSpec
    smiles: tuple[str, ...]
    timeout: float = 0.0
    retries: int = 0
    recycle: int = 0
    turn: int = 1


class Evaluated(NamedTuple):
    """What became of a job.

    scored    one for each molecule
    asked     molecules handed to the reward; more than there are where some were asked again
    seconds   time in the reward
    problem   why the reward could not be loaded; "" if it could
    """

    scored: list[Scored]
    asked: int
    seconds: float
    problem: str = ""


def evaluate(job: Job) -> Evaluated:
    """Score the molecules of a job; with none, load the reward and see whether that works."""
    tally = _Tally(job)
    try:
        if not job.smiles:
            with _child(job):
                return Evaluated([], 0, 0.0)
        scored, failed = tally.call(job.smiles)
        if failed and len(scored) > 1:  # one of them may be to blame
            scored = [tally.single(smiles) for smiles in job.smiles]
        else:
            scored = [tally.again(smiles, x) for smiles, x in zip(job.smiles, scored, strict=True)]
        return Evaluated(scored, tally.asked, tally.seconds)
    except NotLoaded as error:
        message = " ".join(str(error).split())
        return Evaluated([Scored.failed("error", message)] * len(job.smiles), tally.asked, tally.seconds, message)


def end_processes(owner: str) -> None:
    """End this process's children of an owner, whatever they are doing; its jobs start no others here."""
    with _lock:
        _closed.add(owner)
        for child in _children.pop(owner, set()):
            child.kill()
        free = _free.pop(owner, [])
    for child in free:
        child.close()


class _Tally:
    """Asks for a job, and counts."""

    def __init__(self, job: Job) -> None:
        self._job, self.asked, self.seconds = job, 0, 0.0

    def single(self, smiles: str) -> Scored:
        return self.again(smiles, self.call((smiles,))[0][0])

    def again(self, smiles: str, scored: Scored) -> Scored:
        """Ask again after a timeout or an error, as often as the job says."""
        for _ in range(self._job.retries):
            if scored.status in ("ok", "invalid"):
                break
            scored = self.call((smiles,))[0][0]
        return scored

    def call(self, smiles: tuple[str, ...]) -> tuple[list[Scored], bool]:
        """One call: an answer for each molecule, and whether it failed as a whole. NotLoaded where no process can make it."""
        job = self._job
        while True:
            with _child(job) as child:
                begun = time.perf_counter()
                try:
                    scored, seconds = child(smiles, job.timeout)
                except ProcessGone as error:
                    if error.unused:  # it had waited too long, and ended before it was asked
                        continue
                    failed = Scored.failed("error", str(error))
                except CallFailed as error:
                    failed = Scored.failed("error", " ".join(str(error).split()))
                except TimedOut:
                    hint = ": a command must flush each line, and go on reading" if job.spec.kind == "command" else ""
                    failed = Scored.failed("timeout", f"no answer within {job.timeout:g} s{hint}")
                else:
                    self.asked, self.seconds = self.asked + len(smiles), self.seconds + seconds
                    return scored, False
            self.asked, self.seconds = self.asked + len(smiles), self.seconds + time.perf_counter() - begun
            return [failed] * len(smiles), True


# -- processes of the rewards, in this process

_lock = threading.Lock()
_free: dict[str, list[Child]] = {}
_children: dict[str, set[Child]] = {}
_closed: set[str] = set()


@contextmanager
def _child(job: Job) -> Iterator[Child]:
    """A process of the reward for one call. NotLoaded where the reward cannot be loaded."""
    child = _taken(job.owner)
    if child is None:
        child = Child(job.spec, max(job.timeout, LOADING) if job.timeout else 0.0)
        with _lock:
            _children.setdefault(job.owner, set()).add(child)
    try:
        yield child
    finally:
        with _lock:
            kept = child.alive and not child.worn(job.recycle) and job.owner not in _closed
            if kept:
                _free.setdefault(job.owner, []).append(child)
            else:
                _children.get(job.owner, set()).discard(child)
        if not kept:
            child.close()


def _taken(owner: str) -> Child | None:
    """A process that is free."""
    with _lock:
        if owner in _closed:
            raise NotLoaded("the reward was closed")
        free = _free.get(owner, [])
        while free:
            child = free.pop()
            if child.running():
                return child
            _children[owner].discard(child)
            child.close()
    return None
