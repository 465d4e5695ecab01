"""Batches of `gflownet sample` in N spawned processes: drawn, built, scored by RDKit and the proxy, log p.

    draw     a batch goes to the process that has least to do; N batches are begun ahead, as if all molecules were wanted
    choose   in this process, in the order of the batches: what --unique lets pass is known only here
    score    goes to the process that has the batch, and has its trees and molecules still
    rows     in the order of the batches

A batch is what its number and size make it, so rows do not depend on N, on who computes what, or on a process that dies: one in
its place computes its batches again. A reward that is noted (one of the user's, or --calls in training) stays in this process,
beside processes of its own.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from envs.child_process import follow_parent, kill
from experiments.cli.errors import UserError
from experiments.cli.stdout import stdout_to_stderr
from experiments.molecules.trained import Built, Columns, Draw, Kept, Origin, Sample, Trained, Wanted, molecules_of, samples_of
from gflownet.rewards.cached import RESTARTS

if TYPE_CHECKING:
    from rdkit import Chem

EACH, MOST = 5_000, 8  # molecules that are worth a process's start (3 s, 0.4 GB); processes unless more are asked for
HELD = 8  # batches whose trees and molecules a process has still


def default_workers(n: int, device: str) -> int:
    """Processes for n molecules, where nobody says how many."""
    return min(n // EACH, len(os.sched_getaffinity(0)), MOST) if device == "cpu" else 0


class ScoredBatch(NamedTuple):
    """What a process says of some molecules of a batch.

    obs      their trees, where the reward is left to the parent, else None
    rewards  the columns of the reward, else none
    mols     molecules, serialised, where they are wanted
    calls    of the reward, cache hits, seconds
    """

    obs: NDArray[np.int64] | None
    rewards: Columns
    of_policies: Columns
    mols: list[bytes] | None
    calls: tuple[int, int, float]


class SampleWorkers:
    """N processes. They are started by the first batch.

    Raises UserError where processes die repeatedly, and what computing a batch raises.
    """

    def __init__(self, source: Trained, wanted: Wanted, count: int) -> None:
        self._source, self._wanted = source, wanted
        self._noted = source.reward.ledger is not None
        origin = _needed(source.origin, self._noted)
        packed = save({name: x.cpu().contiguous() for name, x in origin.tensors.items()})
        job = _Job(replace(origin, tensors={}), wanted, not self._noted, torch.get_num_threads())
        self._processes = [_Process(job, packed) for _ in range(count)]
        self._drawn: dict[Draw, tuple[_Process, _Task]] = {}
        self.ahead = 2 * count

    def draw(self, coming: Iterator[Draw]) -> list[str | None]:
        wished = list(islice(coming, len(self._processes)))
        for other in set(self._drawn) - set(wished):
            process, task = self._drawn.pop(other)
            process.drop(task)
        for draw in wished:
            if draw not in self._drawn:
                process = min(self._processes, key=_Process.load)
                self._drawn[draw] = process, process.submit(_draw, draw)
        self._at, task = self._drawn.pop(wished[0])
        smiles: list[str | None] = self._at.result(task)
        return smiles

    def score(self, draw: Draw, kept: list[Kept]) -> Callable[[], list[Sample]]:
        if not kept:
            return list
        process, task = self._at, self._at.submit(_score, draw, kept)
        return lambda: self._received(kept, process.result(task))

    def _received(self, kept: list[Kept], scored: ScoredBatch) -> list[Sample]:
        calls, hits, seconds = scored.calls
        count, rewards = self._source.problem.calls, scored.rewards
        count.calls, count.cache_hits, count.seconds = count.calls + calls, count.cache_hits + hits, count.seconds + seconds
        if scored.obs is not None:
            obs = torch.from_numpy(scored.obs).to(self._source.problem.device)
            rewards = self._source.rewards(obs, [one.smiles for one in kept], None)
        mols: list[Chem.Mol | None] = [None] * len(kept)
        if scored.mols is not None:
            from rdkit import Chem

            mols = [Chem.Mol(mol) for mol in scored.mols]  # type: ignore[call-overload]
        return samples_of(kept, rewards, scored.of_policies, mols)

    def close(self) -> None:
        """End the processes at once: what they do is wanted no more."""
        for process in self._processes:
            process.kill()


def _needed(origin: Origin, noted: bool) -> Origin:
    """What a process makes the policies of: without processes of its own, and without a reward that is noted."""
    settings = {**origin.config["env_settings"], "reward_workers": 0}
    if not noted:
        return replace(origin, config={**origin.config, "env_settings": settings})
    settings |= {"reward": "qed", "reward_command": "", "files": "", "seh_weights": "", "seh_digest": ""}
    tensors = {name: x for name, x in origin.tensors.items() if name.startswith("state/")}
    return replace(origin, config={**origin.config, "env_settings": settings, "calls": None}, tensors=tensors)


# -- one process, from outside


class _Task:
    """Work for a process: a function of this module and its arguments."""

    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.work, self.arguments = work, arguments
        self.future: Future[Any] = Future()


class _Process:
    """A process that does tasks in order; another takes its place where it dies."""

    def __init__(self, job: _Job, packed: bytes) -> None:
        self._begin = job, packed
        self._pool: ProcessPoolExecutor | None = None
        self._tasks: list[_Task] = []  # those that another process would have to do
        self._deaths = 0

    def load(self) -> int:
        """Tasks that are not done."""
        return sum(not task.future.done() for task in self._tasks)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> _Task:
        task = _Task(work, arguments)
        self._tasks = [*self._left(), task]
        self._send(task)
        return task

    def drop(self, task: _Task) -> None:
        """Its result is wanted no more."""
        task.future.cancel()
        self._tasks = [other for other in self._tasks if other is not task]

    def result(self, task: _Task) -> Any:
        while True:
            try:
                done = task.future.result()
            except BrokenProcessPool:
                self._restart()
            else:
                self._deaths = 0
                return done

    def _restart(self) -> None:
        self._deaths += 1
        if self._deaths >= RESTARTS:
            raise UserError(
                f"a process that samples died {RESTARTS} times in a row: is there enough memory? --workers 0 needs least; "
                'a script that samples with workers must do so under `if __name__ == "__main__":`',
                exit_code=1,
            ) from None
        left = self._left()
        self.kill()
        for task in left:
            self._send(task)

    def _left(self) -> list[_Task]:
        return [task for task in self._tasks if not _answered(task.future)]

    def _send(self, task: _Task) -> None:
        try:
            if self._pool is None:  # a fork would copy torch's threads in whatever state they are
                self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=follow_parent)
                self._pool.submit(_begin, *self._begin)
            task.future = self._pool.submit(task.work, *task.arguments)
        except BrokenProcessPool as error:  # told where the result is wanted
            task.future = Future()
            task.future.set_exception(error)

    def kill(self) -> None:
        if self._pool is not None:
            kill(self._pool)
            self._pool = None


def _answered(future: Future[Any]) -> bool:
    return future.done() and not isinstance(future.exception(), BrokenProcessPool)


# -- in a process


@dataclass
class _Job:
    """What a process has to know, and what it holds.

    rewards  whether it computes them
    """

    origin: Origin
    wanted: Wanted
    rewards: bool
    threads: int
    held: OrderedDict[Draw, tuple[Tensor, list[Built]]] = field(default_factory=OrderedDict)
    source: Trained | None = None

    def trained(self) -> Trained:
        if self.source is None:
            torch.set_num_threads(self.threads)  # as in the parent: the rounding of products may depend on it
            self.source = self.origin.made()
        return self.source

    def batch(self, draw: Draw) -> tuple[Tensor, list[Built]]:
        if draw not in self.held:  # new, or drawn by a process that died
            obs = self.trained().draw(self.wanted.seed, *draw)
            self.held[draw] = obs, self.trained().molecules(obs)
            while len(self.held) > HELD:
                self.held.popitem(last=False)
        return self.held[draw]


_jobs: list[_Job] = []  # the one of this process


def _begin(job: _Job, packed: bytes) -> None:
    _jobs[:] = [replace(job, origin=replace(job.origin, tensors=load(packed)))]


def _draw(draw: Draw) -> list[str | None]:
    with stdout_to_stderr():
        return [smiles if mol else None for smiles, mol in _jobs[0].batch(draw)[1]]


def _score(draw: Draw, kept: list[Kept]) -> ScoredBatch:
    (job,) = _jobs
    with stdout_to_stderr():
        source, wanted = job.trained(), job.wanted
        obs, built = job.batch(draw)
        del job.held[draw]
        some, mols = obs[[one.at for one in kept]], molecules_of(kept, built)
        count, rewards = source.problem.calls, Columns()
        before = count.calls, count.cache_hits, count.seconds
        if wanted.scores and job.rewards:
            rewards = source.rewards(some, [one.smiles for one in kept], mols)
        of_policies = source.of_policies(some, kept, wanted)
        calls = count.calls - before[0], count.cache_hits - before[1], count.seconds - before[2]
        left = wanted.scores and not job.rewards
        return ScoredBatch(
            some.cpu().numpy() if left else None,
            rewards,
            of_policies,
            [mol.ToBinary() for mol in mols] if wanted.mols else None,
            calls,
        )
