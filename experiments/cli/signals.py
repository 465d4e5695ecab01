"""Deferred handling of SIGINT and SIGTERM: a loop reads them, so that its iteration ends and is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append their number to while the block runs; the third SIGINT raises KeyboardInterrupt.

    Only the main thread can handle signals: in another the list stays empty.
    """
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        if asked.count(signal.SIGINT) > 2:  # an environment may hang
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
