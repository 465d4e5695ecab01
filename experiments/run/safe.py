"""Opens what is in a run folder, which may come from anybody: ordinary files and folders only, and no link is followed.

A link could lead to any file of the person who opens the run, a named pipe would wait for ever, a device has no end. The run
folder itself may be reached through a link, because the user names it; files that the user names are read by `read_named`.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from experiments.cli.errors import UserError

LIMIT = 1 << 26  # bytes of a file that is read whole
LARGEST = 1 << 62  # of whole numbers in JSON: what a tensor holds
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFREG: "a file",
}


class Refused(UserError):
    """Something in a run folder is not what it should be."""

    exit_code = 3


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of an ordinary file, never of what a link leads to; it never blocks.

    Raises:
        Refused: it is a link, a folder, a named pipe or a device.
        OSError: it is not there, or the disk fails.
    """
    _check(path, stat.S_IFREG)
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # it was exchanged since
        os.close(handle)
        raise Refused(f"{path} is not an ordinary file: remove it")
    return handle


def read(path: Path, limit: int = LIMIT) -> bytes:
    """The bytes of an ordinary file. Raises Refused also for one that is larger than `limit`, OSError as `open_file`."""
    return _whole(open_file(path), path, limit)


def read_named(path: Path, limit: int = LIMIT) -> bytes:
    """The bytes of a file that the user named, anywhere, which may be a link to one; errors as `read`."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return _whole(handle, path, limit)


def write(path: Path, data: bytes) -> None:
    """Make an ordinary file, whole or not at all: under a hidden name, then renamed. Errors as `open_file`."""
    _check(path, stat.S_IFREG)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # of a writer that was killed
    write_new(part, data)
    os.replace(part, path)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, to the disk. OSError where something has its name, or the disk fails."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def folder(path: Path, make: bool = False) -> bool:
    """Whether this folder is there. Raises Refused where something else has its name. make: make it where it is missing."""
    if _check(path, stat.S_IFDIR):
        return True
    if make:
        path.mkdir()
    return make


def check_tree(path: Path, patterns: tuple[str, ...]) -> None:
    """Refuse links, pipes and devices among the entries of a folder that match `patterns`, and below those.

    Raises:
        Refused: there is one.
        OSError: a folder cannot be read.
    """
    for entry in os.scandir(path):
        if any(fnmatch(entry.name, pattern) for pattern in patterns):
            _check_below(entry)


def entries(path: Path, pattern: str = "*") -> Iterator[Path]:
    """What is in a folder, by name; nothing where there is no folder. Raises Refused where something else has its name."""
    if folder(path):
        yield from sorted(path / name for name in os.listdir(path) if fnmatch(name, pattern))


def parse_json(data: bytes) -> Any:
    """The value of strict JSON.

    Raises:
        ValueError: it is none, or has what a tensor or a file cannot hold: NaN, infinities, numbers beyond 2^62, a key twice,
            unpaired surrogates.
    """

    def no_constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"the number {text[:20]} is too large")
        return value

    def whole(text: str) -> int:
        if len(text) > 20 or abs(value := int(text)) > LARGEST:
            raise ValueError(f"the number {text[:20]} is too large")
        return value

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    text = data.decode()
    try:
        value = json.loads(text, parse_constant=no_constant, parse_float=number, parse_int=whole, object_pairs_hook=no_twins)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half of a surrogate pair") from None
    return value


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """The object in a strict JSON file. Raises Refused for anything else, OSError where it is not there or the disk fails."""
    try:
        value = parse_json(read(path, limit))
    except ValueError as error:
        raise Refused(f"{path} is damaged ({error}); restore it to use this run") from error
    if not isinstance(value, dict):
        raise Refused(f"{path} is damaged: it holds a {type(value).__name__}, expected an object; restore it to use this run")
    return value


def _check(path: Path, kind: int) -> bool:
    """Whether it is there; Refused where it is of another kind."""
    try:
        found = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
    if found != kind:
        wanted = "an ordinary file" if kind == stat.S_IFREG else "a folder"
        raise Refused(f"{path} is {KINDS.get(found, 'something else')}, expected {wanted}: remove it to use this run")
    return True


def _check_below(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        for below in os.scandir(entry.path):
            _check_below(below)
    else:
        _check(Path(entry.path), stat.S_IFREG)


def _whole(handle: int, path: Path, limit: int) -> bytes:
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
            raise Refused(f"{path} is {kind}, expected an ordinary file")
        if found.st_size > limit:
            raise Refused(f"{path} has {found.st_size:,} bytes, more than the {limit:,} that are read")
        with open(handle, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(handle)
