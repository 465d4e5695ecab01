"""run.json: the id of a run, and the user's files that it was trained with.

    id        a random number that every checkpoint of the run carries
    unmarked  checkpoints up to this iteration need not: they are of a version before 0.4; -1 for a run begun with an id
    files     absolute path -> SHA-256 of each file that config.json names; "command TEXT" -> that of --reward-command, or of a
              Dask scheduler
    seal      HMAC-SHA-256 of id and files with a key that only this account has; null where no key could be kept

A run folder may come from anybody, and its record may be forged. So a file of code is executed only if all of these hold: it
is named by its absolute path, lies outside the run folder, has the SHA-256 of the record, and the record carries this account's
seal (or this very command named the file). Without a seal, a forged record could name any file that somebody put on this
machine. What the file imports is not looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.cli.errors import UserError
from experiments.cli.load import COMMAND, module_name, state_of_command
from experiments.run import safe

NAME = "run.json"
SOURCE = re.compile(r"(/.*?\.py)(?::\w+)?")  # /path/to/file.py:name
MAP = re.compile(r"gridworld:(/.*)")


class Untrusted(UserError):
    """A run names code that may not be executed."""

    exit_code = 3


@dataclass(frozen=True)
class Identity:
    """What run.json holds. id: None for a run of an earlier version."""

    id: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    seal: str | None = None
    unmarked: int = -1

    @staticmethod
    def new(config: Mapping[str, Any], id: str | None = None, unmarked: int = -1) -> Identity:
        """Of a run with this config; `id` and `unmarked`: of one that is there already."""
        id = id or secrets.token_hex(8)
        files = {path: digest for path in sorted(set(_paths(config))) if (digest := _digest(Path(path)))}
        settings = config.get("env_settings")
        if isinstance(settings, Mapping):
            for command in filter(None, (settings.get("reward_command"), _scheduler(settings.get("executor")))):
                files[f"{COMMAND}{command}"] = hashlib.sha256(state_of_command(str(command))).hexdigest()
        key = _key() if any(path.endswith(".py") or path.startswith(COMMAND) for path in files) else None
        return Identity(id, files, None if key is None else _seal(key, id, files), unmarked)

    @staticmethod
    def of(folder: Path) -> Identity:
        """Of a run folder. Raises safe.Refused where run.json is damaged."""
        try:
            found = safe.read_json(folder / NAME, 1 << 20)
        except FileNotFoundError:
            return Identity()
        id, files, seal = (found.get(name) for name in ("id", "files", "seal"))
        if not isinstance(id, str) or not isinstance(files, dict) or not all(isinstance(x, str) for x in files.values()):
            raise safe.Refused(f"{folder / NAME} is damaged: it has no id and files; restore it to use this run")
        unmarked = found.get("unmarked", -1)
        if type(unmarked) is not int:
            raise safe.Refused(f"{folder / NAME} is damaged: unmarked is no integer; restore it to use this run")
        return Identity(id, files, seal if isinstance(seal, str) else None, unmarked)

    def write(self, folder: Path) -> None:
        text = json.dumps({"id": self.id, "unmarked": self.unmarked, "files": dict(self.files), "seal": self.seal}, indent=1)
        safe.write(folder / NAME, f"{text}\n".encode())

    def judge(self, folder: Path, name: str, content: bytes | None) -> None:
        """Raises Untrusted where the run in `folder` may not use this file. content: None where it was not read."""
        end = "pass --trust (trust=True in Python) if you trust the run and this file"
        path = Path(name)
        if content is None:
            what = "names a file by a relative path" if name.endswith(".py") else "imports a module or starts a program"
            raise Untrusted(f"{folder}: config.json {what}, {name}, which is not executed: {end}")
        command = name.startswith(COMMAND)
        file = name.endswith(".py") and not command
        if file and any(p.is_relative_to(folder.resolve()) for p in (path.resolve(), Path(os.path.normpath(path)))):
            raise Untrusted(f"{name} lies in the run folder {folder}, and what is there is not executed: {end}")
        recorded = self.files.get(name)
        if recorded is None and (file or command):
            raise Untrusted(f"{name} is named by config.json of {folder}, but {NAME} has no record of it: {end}")
        if recorded is not None and recorded != hashlib.sha256(content).hexdigest():
            raise Untrusted(f"{name} has changed since {folder} was trained with it: restore it, or {end}")
        if (file or command) and not self._ours() and module_name(path) not in sys.modules:
            raise Untrusted(f"{name} is code that {folder} was trained with, but not by this account on this machine: {end}")

    def _ours(self) -> bool:
        key = _key(make=False)
        return bool(key and self.id and self.seal and hmac.compare_digest(self.seal, _seal(key, self.id, self.files)))


def _paths(value: Any) -> Iterator[str]:
    """Absolute paths of the files of the user that a config names, also in JSON within it."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _paths(part)
    elif isinstance(value, str):
        if found := SOURCE.fullmatch(value) or MAP.fullmatch(value):
            yield found[1]
        elif value.startswith("{") and ".py" in value:
            with contextlib.suppress(ValueError):  # it is no JSON
                yield from _paths(safe.parse_json(value.encode()))


def _scheduler(executor: Any) -> str:
    """What a Dask scheduler, which may send code, is called in the record; "" for other executors."""
    return f"--executor {executor}" if str(executor).startswith("dask:") and executor != "dask:local" else ""


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(safe.read_named(path)).hexdigest()
    except (OSError, UserError):
        return None


def _seal(key: bytes, id: str, files: Mapping[str, str]) -> str:
    return hmac.new(key, json.dumps([id, sorted(files.items())]).encode(), hashlib.sha256).hexdigest()


def _key(make: bool = True) -> bytes | None:
    """This account's key, made when it is first wanted; None where there is none, or no place to keep it."""
    try:
        place = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pgrl"
        path = place / "key"
        if not path.exists():
            if not make:
                return None
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = place / f".key-{secrets.token_hex(4)}"
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(handle, secrets.token_bytes(32))
            finally:
                os.close(handle)
            try:
                os.link(part, path)  # whoever comes first; a rename would take another process's key away
            except FileExistsError:
                pass
            finally:
                part.unlink()
        key = safe.read_named(path, 64)
        return key if len(key) == 32 else None
    except (OSError, RuntimeError, UserError):
        return None
