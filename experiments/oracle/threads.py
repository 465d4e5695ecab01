"""`Threads`: an executor of threads that nobody waits for at exit. Each runs one job at a time, in a process of the reward.

Not a `ProcessPoolExecutor`: it cannot end one job that hangs, and the death of one process breaks the whole pool. Not a
`ThreadPoolExecutor`: at exit Python waits for its threads, and one of them may wait for a reward of four hours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any

Work = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Threads(Executor):
    """Runs submitted functions in `n` threads."""

    def __init__(self, n: int) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, daemon=True, name="reward") for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._closed:
            raise RuntimeError("the executor is closed")
        future: Future[Any] = Future()
        self._work.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        if cancel_futures:
            while True:
                try:
                    work = self._work.get_nowait()
                except Empty:
                    break
                if work is not None:
                    work[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, fn, args, kwargs = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)
            del work, future  # while it waits it holds nothing
