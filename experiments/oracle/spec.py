"""`RewardSpec`: what a user's reward is, so that any process can run it, and the key under which its answers are kept."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from experiments.cli.errors import UserError
from experiments.cli.load import digest_of_word, read_file, refuse_command, split
from experiments.oracle.protocol import PROTOCOL


@dataclass(frozen=True)
class RewardSpec:
    """A function of a file, with the file's content, or a command.

    Attributes:
        kind: function or command.
        name: file.py:function with an absolute path, or the command as it was given.
        key: SHA-256 of everything that decides the values, as far as it can be seen.
        source: content of the file.
        words: words of the command.
    """

    kind: Literal["function", "command"]
    name: str
    key: str
    source: bytes = field(default=b"", repr=False)
    words: tuple[str, ...] = ()


def function_spec(name: str, version: str = "") -> RewardSpec:
    """The reward `file.py:function`. UserError where the file cannot be read, or may not be executed."""
    path, function = split(name)
    if not path.endswith(".py") or not function:
        raise UserError(f"got {name!r}, expected file.py:NAME, a function of a list of SMILES")
    source = read_file(path)
    key = _key("function", function, hashlib.sha256(source).hexdigest(), version)
    return RewardSpec("function", f"{Path(path).resolve()}:{function}", key, source)


def command_spec(command: str, version: str = "") -> RewardSpec:
    """The reward that a program computes. UserError where the text is no command, or may not be executed."""
    refuse_command(command)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--reward-command {command!r} cannot be split into words: {error}") from error
    if not words:
        raise UserError("--reward-command is empty, expected a program and its arguments")
    digests = [digest_of_word(word) for word in words]
    return RewardSpec("command", command, _key("command", words, digests, version), words=tuple(words))


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([PROTOCOL, *parts]).encode()).hexdigest()
