"""The name and the making of a run folder."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cli.errors import UserError
from experiments.run import safe


class RunError(UserError):
    """A run folder cannot be made, opened or written."""


def run_name(env: str, algo: str, seed: int, config: Mapping[str, Any]) -> str:
    """<env>/<algo>/<UTC time>-seed<k>-<6 hex digits of the config's SHA-256>, safe as a path below runs/."""
    now = datetime.datetime.now(datetime.UTC)
    digest = hashlib.sha256(dump(config, sort_keys=True).encode()).hexdigest()[:6]
    return f"{_plain(env)}/{_plain(algo)}/{now:%Y%m%d-%H%M%S}-seed{seed}-{digest}"


def new_folder(folder: Path, numbered: bool) -> Path:
    """Make `folder` and its parents. One that is there is taken if empty, or with `numbered` gives way to folder-2, folder-3.

    Raises RunError when it holds something or cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            made = folder.with_name(f"{folder.name}-{number}") if number > 1 else folder
            try:
                made.mkdir()
            except FileExistsError:
                if numbered:
                    continue
                must_be_empty(made)
            return made
    except OSError as error:
        raise RunError(f"could not make the run folder {folder}: {error.strerror}", exit_code=1) from error
    raise AssertionError("unreachable")


def must_be_empty(folder: Path) -> None:
    """Raises RunError unless only the lock of a run is there."""
    if set(os.listdir(folder)) - {"lock"}:
        raise RunError(
            f"{folder} exists and is not empty; a run is never overwritten: "
            f"choose another --out, or continue it with `{program_of(folder)} resume {folder}`"
        )


def program_of(folder: Path) -> str:
    """The program whose run this is: the first word of its cmd.txt."""
    try:
        first = safe.read(folder / "cmd.txt").split()[:1]
    except (OSError, UserError):
        return "pgrl"
    return "gflownet" if first == [b"gflownet"] else "pgrl"


def dump(value: Mapping[str, Any], sort_keys: bool = False) -> str:
    """Strict JSON for people, paths as strings. Raises TypeError or ValueError on what JSON does not have, such as NaN."""

    def plain(other: Any) -> str:
        if isinstance(other, os.PathLike):
            return str(os.fspath(other))
        raise TypeError(f"a {type(other).__name__} is not JSON: {other!r}")

    return json.dumps(value, indent=1, allow_nan=False, default=plain, sort_keys=sort_keys) + "\n"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by its own name: no two are called the same."""
    table: dict[str, Any] = {}
    for key, value in config.items():
        table |= flat(value) if isinstance(value, Mapping) else {key: value}
    return table


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", name).strip("-.") or "unnamed"


def sync_folder(folder: Path) -> None:
    """A rename in it is on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
