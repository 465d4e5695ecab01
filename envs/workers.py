"""Worker processes: each holds a copy of an environment and samples episodes from reset to end.

Data is exchanged once per rollout, not per step. A worker that dies is replaced and its episodes are sampled again. They depend
on their keys only, so the trajectories are the same and only `restarts` changes.

The main module of a program that creates `Workers` must be importable (`if __name__ == "__main__":`), as always with Python's
spawned processes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from typing import Any

import torch

from envs.child_process import follow_parent, kill
from envs.core import Env, EnvironmentFault, Trajectories
from envs.random import Rng
from envs.rollout import Act, Job, run_episodes

RESTARTS = 3  # the most in one rollout; after that the environment itself is assumed to be faulty


class Workers:
    """A pool of processes with copies of an environment. It is a context manager; `close` ends the processes.

    Args:
        env: the environment; it must be picklable.
        count: processes.

    Raises:
        ValueError: `count` is below 1.
    """

    def __init__(self, env: Env, count: int) -> None:
        if count < 1:
            raise ValueError(f"got {count} workers, expected at least 1")
        self.count, self.restarts, self._env = count, 0, env
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
        return ProcessPoolExecutor(self.count, context, initializer=_settle, initargs=(self._env,))

    def play(self, jobs: Sequence[Job], ours: Callable[[], Trajectories]) -> list[Callable[[], Trajectories]]:
        """Start `jobs` in the workers, then run `ours` in this process.

        Args:
            jobs: at most `count`: (policy, keys, horizon) for each process.
            ours: samples this process's part of the episodes.

        Returns:
            A function for each part, `ours` first, that waits for its trajectories.

        Raises:
            EnvironmentFault: from the returned functions, when workers die repeatedly.
        """
        futures = [self._submit(job) for job in jobs]
        played = _Outcome(ours)
        return [
            played,
            *(lambda job=job, future=future: self._wait(job, future) for job, future in zip(jobs, futures, strict=True)),
        ]

    def _submit(self, job: Job) -> Future[dict[str, Any]] | None:
        try:
            return self._pool.submit(_play, *job)
        except BrokenProcessPool:  # a worker died between two rollouts
            return None

    def _wait(self, job: Job, future: Future[dict[str, Any]] | None) -> Trajectories:
        pool = self._pool
        for _ in range(RESTARTS):
            try:
                if future is not None:
                    return _received(future.result())
            except BrokenProcessPool:
                pass
            if pool is self._pool:  # another job may have restarted it already
                pool.shutdown(wait=False)
                self._pool = self._started()
                self.restarts += 1
            pool, future = self._pool, self._submit(job)
        how = (
            f"ended its worker process {RESTARTS} times while sampling the same episodes: run without workers to see why; a "
            'script that creates workers must do so under `if __name__ == "__main__":`'
        )
        raise EnvironmentFault("worker", how=how)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            kill(self._pool)  # a worker may hang


class _Outcome:
    """Run `work` at once and return or raise its result when called, so that the other jobs are started even if it fails."""

    def __init__(self, work: Callable[[], Trajectories]) -> None:
        self.error: Exception | None = None
        try:
            self.value = work()
        except Exception as error:
            self.error = error

    def __call__(self) -> Trajectories:
        if self.error is not None:
            raise self.error
        return self.value


_copies: list[Env] = []  # in a worker process: its copy of the environment


def _settle(env: Env) -> None:
    follow_parent()
    torch.set_num_threads(1)
    _copies.append(env)


def _play(act: Act, rng: Rng, horizon: int) -> dict[str, Any]:
    tau = run_episodes(_copies[0], act, rng, horizon)
    values = {f.name: getattr(tau, f.name) for f in fields(tau)}
    return {name: None if x is None else x.numpy() for name, x in values.items()}


def _received(arrays: dict[str, Any]) -> Trajectories:
    tensors: dict[str, Any] = {name: None if x is None else torch.from_numpy(x) for name, x in arrays.items()}
    return Trajectories(**tensors)
