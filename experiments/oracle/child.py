"""The process in which a user's reward runs. `host` starts it, says what to load, and asks one batch after another.

    requests   lines of JSON: first what to load (`Order`), then {"smiles": [...]}
    replies    lines of JSON: first {"protocol": 1, "error": ""}, then {"seconds": 0.1, "scored": [0.5, ["invalid", "..."]]},
               or {"seconds": 0.1, "failed": "...", "over": false} where the whole call gave nothing
    life       a pipe that closes when the parent ends, however it ends; the kernel then kills this process and all it started
    stdin      is empty; what the reward prints goes to stderr

The pipes are closed in processes that the reward forks or starts. Only the standard library is imported here.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from experiments.oracle.protocol import PROTOCOL, UNUSED, Answer, CallFailed

F_SETSIG = 10  # fcntl.F_SETSIG is missing from some builds

Order = dict[str, Any]
"""{"protocol", "idle", "kind": "function", "name": "file.py:score", "source", "path"} or {..., "kind": "command", "words"}."""


class Channel:
    """Lines of JSON from and to the parent. A process that the reward has forked loses it."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies, self._pid, self._buffer = requests, replies, os.getpid(), b""
        self._pipe = _identity(replies)
        self._waiting = select.poll()
        self._waiting.register(requests, select.POLLIN)
        os.register_at_fork(after_in_child=self._lose)

    def read(self, idle: float | None = None) -> Any:
        """The next message; None where the parent has closed the channel. The process ends after `idle` seconds without one."""
        while b"\n" not in self._buffer:
            if not self._waiting.poll(None if idle is None else idle * 1000):
                os._exit(UNUSED)
            more = os.read(self._requests, 1 << 16)
            if not more:
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def write(self, message: Any) -> None:
        """Send a message. The process ends where the reward has closed or exchanged the pipe, or is a fork of this one."""
        if os.getpid() != self._pid or _identity(self._replies) != self._pipe:
            os._exit(1)
        view = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
        try:
            while view:
                view = view[os.write(self._replies, view) :]
        except OSError:
            os._exit(1)

    def _lose(self) -> None:
        self._pid = -1
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                os.close(pipe)


def main() -> None:
    """Serve until the parent closes the channel."""
    requests, replies, life = map(int, sys.argv[1:4])
    end_with_parent(life)
    for pipe in (requests, replies, life):
        os.set_inheritable(pipe, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with contextlib.suppress(OSError):  # stderr may be closed
        os.dup2(2, 1)
    sys.stdout, sys.argv = sys.stderr, [""]
    channel = Channel(requests, replies)
    order = channel.read()
    if order is None:
        return
    try:
        reward = _made(order)
    except BaseException as error:  # of the reward's file, sys.exit() too
        channel.write({"protocol": PROTOCOL, "error": str(error) or type(error).__name__})
        return
    channel.write({"protocol": PROTOCOL, "error": ""})
    while (request := channel.read(order["idle"])) is not None:
        begun = time.perf_counter()
        try:
            reply: dict[str, Any] = {"scored": reward(request["smiles"])}
        except CallFailed as error:
            reply = {"failed": str(error), "over": error.over}
        channel.write({"seconds": time.perf_counter() - begun, **reply})
    os._exit(0)  # threads and exit handlers of the reward hold nothing up


def end_with_parent(life: int) -> None:
    """Kill this process group when the other end of the pipe `life` closes, even while compiled code runs."""
    group = os.getpgrp()
    fcntl.fcntl(life, fcntl.F_SETOWN, -group)
    fcntl.fcntl(life, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    parent = os.getppid()

    def watch() -> None:  # the pipe may have closed before, or be held open by a fork of the parent
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(group, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _made(order: Order) -> Callable[[list[str]], list[Answer]]:
    if order["protocol"] != PROTOCOL:
        raise CallFailed(f"the process speaks protocol {PROTOCOL}, got {order['protocol']}: use one version everywhere")
    if order["kind"] == "command":
        from experiments.oracle.command import Command

        return Command(order["words"])
    from experiments.oracle.function import loaded

    sys.path[:] = order["path"]
    return loaded(order["name"], base64.b64decode(order["source"]))


def _identity(handle: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(handle)
    except OSError:
        return None
    return found.st_dev, found.st_ino
