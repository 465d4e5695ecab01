"""What the two sides of the channel to a user's reward share: `child` in the reward's process, `host` in ours."""

from __future__ import annotations

PROTOCOL = 1
UNUSED = 75  # exit code of a process that ended because nothing was asked of it
Answer = float | tuple[str, str]
"""A finite number, or (status, message)."""


class CallFailed(Exception):
    """A whole call gave nothing, in one sentence. over: this process is not to be used again."""

    def __init__(self, message: str, over: bool = False) -> None:
        super().__init__(message)
        self.over = over
