"""Processes that each hold a copy of an environment and play episodes from reset to end.

One hand-over per rollout, not per step. A worker that dies is replaced and its episodes are played again: they depend on
their keys only, so nothing changes but `restarts`.

A program that makes `Workers` must be importable (`if __name__ == "__main__":`), as for every started process in Python.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from typing import Any

import torch

from envs.child_process import follow_parent
from envs.core import Env, Trajectories
from envs.random import Rng
from envs.rollout import Act, Job, run_episodes

RESTARTS = 3  # of one rollout: more, and the environment itself is at fault


class Workers:
    """`count` processes with copies of `env` (which must be picklable). A context manager; `close` ends them."""

    def __init__(self, env: Env, count: int) -> None:
        if count < 1:
            raise ValueError(f"got {count} workers, expected at least 1")
        self.count, self.restarts, self._env = count, 0, env
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
        return ProcessPoolExecutor(self.count, context, initializer=_settle, initargs=(self._env,))

    def play(self, jobs: Sequence[Job], ours: Callable[[], Trajectories]) -> list[Callable[[], Trajectories]]:
        """Starts `jobs` (at most `count`), then plays `ours` here; for each, ours first, a function that waits for its result.

        Raises RuntimeError when workers keep dying.
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
        except BrokenProcessPool:  # noticed between two rollouts
            return None

    def _wait(self, job: Job, future: Future[dict[str, Any]] | None) -> Trajectories:
        pool = self._pool
        for _ in range(RESTARTS):
            try:
                if future is not None:
                    return _received(future.result())
            except BrokenProcessPool:
                pass
            if pool is self._pool:  # a sibling that waited before may have restarted it
                pool.shutdown(wait=False)
                self._pool = self._started()
                self.restarts += 1
            pool, future = self._pool, self._submit(job)
        raise RuntimeError(
            f"a worker process died {RESTARTS} times while playing the same episodes: run without workers to see why; a script "
            'of one\'s own must make them under `if __name__ == "__main__":`'
        )

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Outcome:
    """Runs now, tells later: the others are waited for even when this one fails."""

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


_copies: list[Env] = []  # in a worker: its own environment


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
