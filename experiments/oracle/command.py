"""A program as the reward, in the process `child`: one SMILES a line on its stdin, one number a line on its stdout.

The program is started once and kept; it must flush each line. "error: TEXT" is an error, an empty line, NaN and infinities are
invalid, and any other text ends the call. A program that has ended is started again for the next call; where a call fails, it
ends with this process.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
from collections.abc import Sequence

from experiments.oracle.protocol import Answer, CallFailed

LONGEST = 1 << 20  # bytes of a line
SETTLE = 0.05  # seconds in which a program, after its first call, is watched for lines too many


class Command:
    """A running program. Calling it raises CallFailed where it did not print one line for each molecule.

    Raises:
        CallFailed: the program cannot be started.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._process: subprocess.Popen[bytes] | None = None
        self._output, self._calls = b"", 0
        self._start()

    def __call__(self, smiles: list[str]) -> list[Answer]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
        waiting = select.poll()
        waiting.register(stdout, select.POLLIN)
        self._output += _available(stdout)
        if self._output:
            raise self._more(0)
        given = memoryview("".join(f"{text}\n" for text in smiles).encode())
        waiting.register(stdin, select.POLLOUT)
        while given or self._output.count(b"\n") < len(smiles):
            for handle, _ in waiting.poll():
                if handle == stdin:
                    try:
                        given = given[os.write(stdin, given) :]
                    except BlockingIOError:
                        pass
                    except BrokenPipeError:
                        given = given[:0]
                    if not given:
                        waiting.unregister(stdin)
                    continue
                more = os.read(stdout, 1 << 16)
                self._output += more
                if not more and not self._output and self._calls and _how(process) == 0:
                    self._start()  # it had ended after the call before this one
                    return self(smiles)
                if not more and self._output.count(b"\n") < len(smiles):
                    raise self._ended(process, len(smiles))
                if not more:
                    given = given[:0]
                if self._output.rfind(b"\n") + LONGEST < len(self._output):
                    raise _over(f"the command printed a line of more than {LONGEST:,} characters, expected a number")
        *lines, self._output = self._output.split(b"\n", len(smiles))
        answers = [parsed(line.decode(errors="replace")) for line in lines]
        if not self._calls:  # a program that prints more than it should would answer each molecule with the number of another
            waiting.poll(SETTLE * 1000)
        self._output += _available(stdout)
        if self._output:
            raise self._more(len(smiles))
        self._calls += 1
        return answers

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise CallFailed(f"the command {self._words[0]} cannot be started: {said}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        self._process, self._output, self._calls = process, b"", 0
        return process

    def _more(self, expected: int) -> CallFailed:
        extra = self._output.split(b"\n")[0].decode(errors="replace")
        return _over(
            f"the command printed {extra!r:.60} beyond {expected} lines for {expected} molecules, expected nothing more"
        )

    def _ended(self, process: subprocess.Popen[bytes], n: int) -> CallFailed:
        lines = self._output.count(b"\n")
        code = _how(process)
        how = "closed its output" if code is None else ended(code)
        return _over(f"the command {how} after {lines} of {n} lines, expected it to go on reading SMILES")


def _over(message: str) -> CallFailed:
    return CallFailed(message, over=True)


def parsed(line: str) -> Answer:
    """The number on a line of output. CallFailed where it is neither a number nor what stands for none."""
    text = line.strip()
    if text[:6].lower() == "error:":
        return "error", f"the command said {text:.300}"
    try:
        number = float(text or "nan")
    except ValueError:
        raise _over(f"the command printed {text!r:.60}, expected a finite number") from None
    return number if math.isfinite(number) else ("invalid", f"the command printed {text!r:.60}, expected a finite number")


def ended(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _how(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that has closed its output; None where it goes on nevertheless."""
    try:
        return process.wait(5)
    except subprocess.TimeoutExpired:
        return None


def _available(handle: int) -> bytes:
    try:
        return os.read(handle, 1 << 16)
    except BlockingIOError:
        return b""
