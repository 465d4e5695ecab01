"""Set-up and end of worker processes: they ignore Ctrl-C, and end with their parent. Imports only the standard library."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def follow_parent() -> None:
    """Ignore SIGINT and exit when the parent process ends. Call it in a child process of `multiprocessing`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and finishes its work first
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the parent was killed

    threading.Thread(target=watch, daemon=True).start()


def kill(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool at once, whatever they are doing; at the exit of Python they would be waited for."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)
