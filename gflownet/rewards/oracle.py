"""`Oracle`: a reward of SMILES that may take long, fail or hang; `Scored`: what it says of one molecule.

    ok       a finite number
    timeout  no answer within the time limit
    invalid  an answer that is no finite number
    error    an exception, a process that died, an answer of the wrong length

Only "ok" has a value. What a failed molecule counts as is decided by who asks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

STATUSES = ("ok", "timeout", "invalid", "error")
"""Their order is that of the codes in a checkpoint."""
COMMAND = "command"
"""The term of a formula that is a program of the user's."""


class Scored(NamedTuple):
    """What an oracle says of one molecule.

    value    finite if status is "ok", else NaN
    status   one of STATUSES
    message  why it failed, in one sentence; "" if it did not
    """

    value: float
    status: str = "ok"
    message: str = ""

    @staticmethod
    def failed(status: str, message: str) -> Scored:
        """A molecule without a value."""
        return Scored(math.nan, status, message)


@runtime_checkable
class Oracle(Protocol):
    """Scores molecules by their canonical SMILES; the molecules of a call are distinct."""

    def submit(self, smiles: Sequence[str]) -> None:
        """Start to score molecules and return at once. Those that are under way already are left alone."""

    def __call__(self, smiles: Sequence[str]) -> list[Scored]:
        """Score molecules, those submitted before among them, and wait for all: one for each, in order."""
        ...

    def close(self) -> None:
        """End its processes at once; nothing that was answered is lost."""
