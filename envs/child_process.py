"""What a worker process does first: it leaves Ctrl-C to its parent, and ends when the parent does. Imports nothing heavy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """To be called in a child process of `multiprocessing`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which finishes what it is doing
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the parent was killed: nobody will ask for anything any more

    threading.Thread(target=watch, daemon=True).start()
