"""Set-up of a worker process: it ignores Ctrl-C, and ends when its parent does. Imports only the standard library."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Ignore SIGINT and exit when the parent process ends. Call it in a child process of `multiprocessing`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and finishes its work first
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the parent was killed

    threading.Thread(target=watch, daemon=True).start()
