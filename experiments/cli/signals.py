"""Deferred handling of SIGINT, SIGTERM and SIGHUP: a loop reads them, so that its iteration ends and is saved first.

    signal                          the loop ends its iteration, saves it and stops
    none of that after GRACE s      a block marked `with asked.interruptible():` is left by `Stopped`, at once or when it begins
    third SIGINT                    KeyboardInterrupt, wherever the program is

Rewards, environments and agents of users run in such blocks, because they may hang. A thread sends SIGTERM again and again
after the grace period, for a system call that waits ends only by a signal. SIGALRM is left to users' own time limits. A call
that never comes back from compiled code ends by SIGKILL only.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE = 5.0  # seconds from a signal until a call of a user's code is interrupted
AGAIN = 1.0  # seconds between attempts, for code that catches everything


class Stopped(KeyboardInterrupt):
    """Raised in an interruptible block after the grace period. Code that catches exceptions lets a KeyboardInterrupt pass."""


class Asked(list[int]):
    """The signals so far, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.late = False
        self._unchanged: Callable[[], bool] | None = None

    @contextmanager
    def interruptible(self, unchanged: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """A block that `Stopped` may leave, while `unchanged()` says that nothing is half done."""
        self._unchanged = unchanged
        try:
            self.look()
            yield
        finally:
            self._unchanged = None

    def look(self) -> None:
        """Leave the block if it is time to."""
        if self.late and self._unchanged is not None and self._unchanged():
            raise Stopped

    @property
    def code(self) -> int:
        """The exit code of the first signal."""
        return 128 + self[0]


@contextmanager
def deferred_signals(grace: float | None = None) -> Iterator[Asked]:
    """The signals that arrive while the block runs, instead of what they do otherwise.

    grace  seconds from a signal until interruptible blocks are left; default: GRACE

    Only the main thread can handle signals: in another none arrives. An ignored SIGHUP (nohup) stays ignored.
    """
    asked, over = Asked(), threading.Event()
    main = threading.current_thread() is threading.main_thread()

    def remind() -> None:
        wait = GRACE if grace is None else grace
        while not over.wait(wait):
            asked.late, wait = True, AGAIN
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    reminder, handled_so_far = threading.Thread(target=remind, daemon=True), itertools.count()

    def ask(number: int, _: Any) -> None:
        if not asked.late or number == signal.SIGINT:
            asked.append(number)
        if next(handled_so_far) == 0:
            reminder.start()
        if asked.count(signal.SIGINT) > 2:
            raise KeyboardInterrupt
        asked.look()

    handled = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    if main and signal.SIGINT not in handled:  # ignored by a shell that started the process in the background
        handled.append(signal.SIGINT)
    before = {s: signal.signal(s, ask) for s in handled} if main else {}
    try:
        yield asked
    finally:
        over.set()
        if reminder.is_alive():
            reminder.join()  # a reminder after this would end the process
        for s, handler in before.items():
            signal.signal(s, handler)
