"""Objects in a user's file, named `path/to/file.py:NAME`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.cli.errors import UserError


def load_object(name: str) -> Callable[..., Any]:
    """`path/to/file.py:name`. UserError when the file or the name is missing, or the file fails."""
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        path, attribute = name, ""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"file:{file.resolve()}", file)  # a name that hides no other module
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # sys.exit() too
        del sys.modules[spec.name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"{file} could not be loaded: {type(error).__name__}: {error}") from error
    public = [n for n in vars(module) if not n.startswith("_")]
    if not attribute or not hasattr(module, attribute):
        raise UserError(f"got {name!r}, expected {file}:NAME with NAME one of {', '.join(public)}")
    return getattr(module, attribute)


def absolute(value: Any) -> Any:
    """A file.py:name that is found from any folder; anything else as it is."""
    head, colon, tail = value.partition(":") if isinstance(value, str) else ("", "", "")
    return f"{Path(head).resolve()}{colon}{tail}" if head.endswith(".py") else value


def short_name(name: str) -> str:
    """A name whose files have no folders and no suffix, for figures and run folders: /home/me/mine.py:agent is mine:agent."""
    return ":".join(Path(part).stem if "." in part else part for part in name.split(":"))
