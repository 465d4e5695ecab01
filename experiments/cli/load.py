"""Objects in a user's file, named `path/to/file.py:NAME`, and whether the code of a run that was opened may be executed.

    a command names a file       it is executed
    an opened run names a file   it is executed if it is as it was in training, and this account trained with it (see `trust`)

A file is read once: what is executed is what was compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from experiments.cli.errors import UserError
from experiments.run import safe

Judge = Callable[[str, bytes | None], None]  # of a file's name and content: UserError where it may not be used
_judge: ContextVar[Judge | None] = ContextVar("judge", default=None)
COMMAND = "command "  # what a command is called before a judge, in front of its text
LARGEST = 1 << 24  # bytes of a source file or a map


@contextlib.contextmanager
def judged_by(judge: Judge | None) -> Iterator[None]:
    """Within the block `judge` is asked before a file that a name leads to is used. None: all are."""
    token = _judge.set(judge)
    try:
        yield
    finally:
        _judge.reset(token)


def load_object(name: str) -> Callable[..., Any]:
    """`path/to/file.py:name`. UserError when the file or the name is missing, may not be executed, or fails."""
    return object_in(name, read_file(split(name)[0]))


def object_in(name: str, source: bytes) -> Callable[..., Any]:
    """`path/to/file.py:name` in this text of the file. UserError when the name is missing, or the text fails."""
    path, attribute = split(name)
    file = Path(path)
    # a name that hides no other module
    spec = importlib.util.spec_from_file_location(module_name(file), file) if path.endswith(".py") else None
    if spec is None:
        raise UserError(f"got {name!r}, expected file.py:NAME")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)  # not a cache that lies beside it
    except BaseException as error:  # sys.exit() too
        del sys.modules[spec.name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"{file} could not be loaded: {type(error).__name__}: {error}") from error
    public = [n for n in vars(module) if not n.startswith("_")]
    if not attribute or not hasattr(module, attribute):
        raise UserError(f"got {name!r}, expected {file}:NAME with NAME one of {', '.join(public)}")
    return getattr(module, attribute)


def split(name: str) -> tuple[str, str]:
    """(path, name) of `path/to/file.py:name`; the name is "" where there is none."""
    path, _, attribute = name.rpartition(":")
    return (path, attribute) if path.endswith(".py") else (name, "")


def read_file(path: str) -> bytes:
    """The content of a file that the user, or an opened run, names. UserError where it cannot be read or may not be used."""
    judge = _judge.get()
    if judge is not None and not Path(path).is_absolute():  # before it is looked for from wherever this process is
        judge(path, None)
    try:
        content = safe.read_named(Path(path), LARGEST)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if judge is not None:
        judge(path, content)
    return content


def refuse_import(name: str) -> None:
    """UserError where an opened run asks for a module by `name`, as the Gymnasium id module:Env-v0 does."""
    if (judge := _judge.get()) is not None:
        judge(name, None)


def refuse_command(command: str) -> None:
    """UserError where an opened run asks for a program to be started that it was not trained with, or not by this account."""
    if (judge := _judge.get()) is not None:
        judge(f"{COMMAND}{command}", state_of_command(command))


def state_of_command(command: str) -> bytes:
    """The command with the digests of the words that are files: what must be as it was in training."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = [command]
    return json.dumps([command, *map(digest_of_word, words)]).encode()


def digest_of_word(word: str) -> str:
    """SHA-256 of a word of a command that is an ordinary file; "" for other words."""
    try:
        path = Path(word)
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def module_name(file: Path) -> str:
    return f"file:{file.resolve()}"


def absolute(value: Any) -> Any:
    """A file.py:name that is found from any folder; anything else as it is."""
    head, colon, tail = value.partition(":") if isinstance(value, str) else ("", "", "")
    return f"{Path(head).resolve()}{colon}{tail}" if head.endswith(".py") else value


def short_name(name: str) -> str:
    """A name whose files have no folders and no suffix, for figures and run folders: /home/me/mine.py:agent is mine:agent."""
    return ":".join(Path(part).stem if "." in part else part for part in name.split(":"))
