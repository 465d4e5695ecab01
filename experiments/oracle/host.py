"""The parent's side of `child`: starts a process for a reward, asks it with a time limit, and ends it."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.oracle.command import ended
from experiments.oracle.protocol import PROTOCOL, UNUSED, CallFailed
from experiments.oracle.spec import RewardSpec
from gflownet.rewards.oracle import STATUSES, Scored

ROOT = str(Path(__file__).parents[2])
START = "import sys; sys.path.insert(0, {root!r}); from experiments.oracle.child import main; main()"
IDLE = 600.0  # seconds without a call after which a process ends by itself
WORTH = 20  # a process is not replaced before it has lived so many times as long as it took to load
LOOK = 0.25  # seconds between looks whether a process that does not answer is still there


class NotLoaded(Exception):
    """The reward could not be loaded."""


class TimedOut(Exception):
    """A call took longer than the time limit. Its process was ended."""


class ProcessGone(Exception):
    """The process ended during a call, or answered what is no answer; it was ended. unused: before the call began."""

    def __init__(self, message: str, unused: bool = False) -> None:
        super().__init__(message)
        self.unused = unused


class Reply(NamedTuple):
    """Answers of one call, one for each molecule, and the seconds that the reward itself took."""

    scored: list[Scored]
    seconds: float


class Child:
    """A process that has loaded a reward.

    Args:
        spec: the reward.
        load_limit: seconds that loading may take; 0: no limit.

    Raises:
        NotLoaded: the reward cannot be loaded.
    """

    def __init__(self, spec: RewardSpec, load_limit: float = 0.0) -> None:
        self.calls, self._begun = 0, time.monotonic()
        theirs, self._requests = os.pipe()
        self._replies, answers = os.pipe()
        life, self._life = os.pipe()
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(root=ROOT), str(theirs), str(answers), str(life)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # until the process makes it stderr
                pass_fds=(theirs, answers, life),
                start_new_session=True,  # Ctrl-C of the terminal is not for it, and what it starts ends with it
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            for handle in (theirs, answers, life):
                os.close(handle)
        self._waiting = select.poll()
        self._waiting.register(self._replies, select.POLLIN)
        order: dict[str, Any] = {"protocol": PROTOCOL, "kind": spec.kind, "idle": IDLE}
        if spec.kind == "function":
            order |= {"name": spec.name, "source": base64.b64encode(spec.source).decode(), "path": sys.path}
        else:
            order |= {"words": spec.words}
        try:
            hello = self._asked(order, load_limit, 1)
        except TimedOut:
            raise NotLoaded(f"{spec.name} was not loaded within {load_limit:g} s") from None
        except ProcessGone as error:
            raise NotLoaded(f"{spec.name} could not be loaded: {error}") from None
        if hello.get("protocol") != PROTOCOL or hello.get("error") != "":
            self.close()
            raise NotLoaded(str(hello.get("error") or f"its process speaks protocol {hello.get('protocol')!r}, not {PROTOCOL}"))

        self._loaded = time.monotonic()

    def __call__(self, smiles: Sequence[str], limit: float = 0.0) -> Reply:
        """Score molecules.

        Args:
            smiles: the molecules.
            limit: seconds that this may take; 0: no limit.

        Raises:
            TimedOut: it took longer.
            ProcessGone: the process ended.
            CallFailed: the reward raised, or answered with the wrong number of values.
        """
        self.calls += 1
        reply = self._asked({"smiles": list(smiles)}, limit, len(smiles))
        failed = reply.get("failed")
        if isinstance(failed, str):
            if over := reply.get("over") is not False:
                self.close()
            raise CallFailed(failed, over)
        try:
            scored = [_scored(answer) for answer in reply["scored"]]
            if len(scored) != len(smiles):
                raise ValueError
            return Reply(scored, float(reply["seconds"]))
        except (KeyError, TypeError, ValueError):
            self.close()
            raise ProcessGone(f"its process answered {reply!r:.80}, expected one answer for each molecule") from None

    @property
    def alive(self) -> bool:
        return self._life >= 0

    def running(self) -> bool:
        """Whether the process has not ended by itself since the last call."""
        return self.alive and self._process.poll() is None

    def worn(self, calls: int) -> bool:
        """Whether it has answered so many calls (0: never), and lived for so long that loading it again costs little."""
        loading, lived = self._loaded - self._begun, time.monotonic() - self._loaded
        return 0 < calls <= self.calls and lived >= WORTH * loading

    def kill(self) -> None:
        """End the process and what it has started, from another thread than the one that asks it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and what it has started, at once."""
        if self.alive:
            self.kill()
            self._close_pipes()
            self._process.wait()

    def _asked(self, message: Any, limit: float, n: int) -> dict[str, Any]:
        deadline = time.monotonic() + limit if limit else math.inf
        try:
            data = memoryview(json.dumps(message).encode() + b"\n")
            while data:
                data = data[os.write(self._requests, data) :]
            line = self._line(deadline, 20_000 + 2_000 * n)
            reply = json.loads(line)
            if not isinstance(reply, dict):
                raise ValueError
            return reply
        except OSError:
            raise self._gone() from None
        except ValueError:
            self.close()
            raise ProcessGone(
                "its process wrote what is no answer: the reward must not write to pipes it did not open"
            ) from None
        except BaseException:  # the time limit, Ctrl-C
            self.close()
            raise

    def _line(self, deadline: float, longest: int) -> bytes:
        while b"\n" not in self._buffer:
            wait = min(LOOK, deadline - time.monotonic())
            if wait <= 0:
                raise TimedOut
            if self._waiting.poll(wait * 1000):
                more = os.read(self._replies, 1 << 16)
                if not more:
                    raise BrokenPipeError
                self._buffer += more
                if len(self._buffer) > longest:
                    raise ValueError
            elif self._process.poll() is not None:  # a fork of it may hold the pipe
                raise BrokenPipeError
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _gone(self) -> ProcessGone:
        try:
            code = self._process.wait(LOOK)
        except subprocess.TimeoutExpired:
            self.close()
            return ProcessGone("its process closed the pipe to this program: the reward must not close files it did not open")
        self.close()
        hint = ", as happens where memory runs out" if code == -signal.SIGKILL else ""
        return ProcessGone(f"its process {ended(code)}{hint}", unused=code == UNUSED)

    def _close_pipes(self) -> None:
        for handle in (self._requests, self._replies, self._life):
            os.close(handle)
        self._life = -1


def _scored(answer: Any) -> Scored:
    if isinstance(answer, float | int):
        return Scored(float(answer))
    status, message = answer
    if status not in STATUSES[1:] or not isinstance(message, str):
        raise ValueError
    return Scored.failed(status, message)
