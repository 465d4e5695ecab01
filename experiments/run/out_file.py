"""Where a command's output goes: a file that is whole or not there at all, or standard output, which may end early.

    NAME    write .NAME.part beside it, locked;  fsync;  rename to NAME;  fsync the folder
    -       standard output; a reader that has seen enough (| head) ends the block quietly

A writer that fails or is stopped leaves NAME as it was. One that is killed leaves .NAME.part as well; the next takes it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from experiments.cli.errors import UserError, forget_output
from experiments.run.folder import sync_folder

Write = Callable[[bytes], None]


def output(path: Path) -> AbstractContextManager[Write]:
    """`whole_file`, or `standard_output` for "-"."""
    return standard_output() if str(path) == "-" else whole_file(path)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Write]:
    """What is written becomes the file `path` when the block ends; when the block raises, `path` stays as it was.

    Raises UserError: exit code 2 where no file can be made or another process is at it, 1 where the disk fails.
    """
    target = path.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is {'a folder' if target.is_dir() else 'not an ordinary file'}: choose another name")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}: make it, or choose another name")
    part = target.with_name(f".{target.name}.part")
    with _as_sentence(path):
        file = _locked(part, path)

    def write(data: bytes) -> None:
        with _as_sentence(path):
            file.write(data)

    try:
        yield write
        with _as_sentence(path):
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, target)
            sync_folder(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):  # of a full disk: what is still in the buffer
            file.close()


@contextlib.contextmanager
def standard_output() -> Iterator[Write]:
    """Bytes to standard output, at once. UserError (exit code 1) where they cannot be written."""

    def write(data: bytes) -> None:
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            forget_output()
            raise
        except OSError as error:
            forget_output()
            raise UserError(f"could not write to standard output: {error.strerror or error}", exit_code=1) from error

    with contextlib.suppress(BrokenPipeError):
        yield write


@contextlib.contextmanager
def _as_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}; nothing was changed there", exit_code=1) from error


def _locked(part: Path, path: Path) -> BinaryIO:
    """The hidden file, empty and ours alone."""
    while True:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if part.exists() and os.path.samestat(os.fstat(handle), os.stat(part)):  # else it was renamed since it was opened
                os.ftruncate(handle, 0)
                return os.fdopen(handle, "wb")
        except BlockingIOError as error:
            os.close(handle)
            raise UserError(f"{path} is being written by another process: wait for it or stop it") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
