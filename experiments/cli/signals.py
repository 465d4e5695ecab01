"""Ctrl-C and SIGTERM as a wish that a loop reads, so that the iteration under way ends and is saved first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def heeded() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to while the block runs."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        if asked.count(signal.SIGINT) > 2:  # somebody means it: an environment may hang
            raise KeyboardInterrupt

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
