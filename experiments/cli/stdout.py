"""Standard output is for data: what code of the user prints goes to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

_C = ctypes.CDLL(None)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Within the block, what is printed to stdout goes to stderr: by Python, by C, by processes that are started in it.

    It is the whole process's stdout, so only the main thread exchanges it; in another thread nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.redirect_stdout(sys.stderr), _exchanged():
        yield


@contextlib.contextmanager
def _exchanged() -> Iterator[None]:
    """File descriptor 1 is 2."""
    kept = -1
    try:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        _C.fflush(None)
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):  # one of them is closed
        pass
    try:
        yield
    finally:
        if kept >= 0:
            _C.fflush(None)  # what C has buffered for stdout
            os.dup2(kept, 1)
            os.close(kept)
