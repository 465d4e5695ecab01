"""Threads that step MuJoCo rows side by side: `mj_step` leaves the GIL free, so only the physics runs in parallel."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any


class Helpers:
    """Threads that do the same work as their caller at the same time; they end when this object is collected."""

    def __init__(self, count: int) -> None:
        self.process = os.getpid()
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        for _ in range(count):
            threading.Thread(target=_serve, args=(self._jobs,), daemon=True).start()
        weakref.finalize(self, _dismiss, self._jobs, count)

    def share(self, work: Callable[[], None], helpers: int) -> None:
        """Calls `work` here and in `helpers` threads; returns when all have, raises what one of them raised."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for _ in range(helpers):
            self._jobs.put((work, done))
        try:
            work()
        finally:
            errors = [done.get() for _ in range(helpers)]
        for error in errors:
            if error is not None:
                raise error


def _serve(jobs: SimpleQueue[Any]) -> None:
    while (job := jobs.get()) is not None:
        work, done = job
        try:
            work()
            done.put(None)
        except BaseException as error:
            done.put(error)
        del job, work, done  # a thread at rest keeps nothing alive


def _dismiss(jobs: SimpleQueue[Any], count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def walk(jobs: Iterator[Any], step: Any, forces: Any, model: Any, frame_skip: int) -> None:
    """Steps row after row of `jobs`, ((MjData, its controls), action); several threads may walk along one list iterator."""
    for (data, control), action in jobs:
        control[:] = action
        step(model, data, frame_skip)
        if forces is not None:
            forces(model, data)
