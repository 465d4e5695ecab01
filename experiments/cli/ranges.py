"""Numbers of the command line held to the ranges declared beside them (`envs.ranges`), each refused with one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from envs.ranges import check_values
from experiments.cli.errors import UserError


def check_flags(kind: Any, values: Mapping[str, Any] | None = None) -> None:
    """Refuse values that do not fit the annotations of a dataclass or a function.

    Args:
        kind: a dataclass, an instance of one (whose fields are then the values), or a function.
        values: by the name of the field or parameter.

    Raises:
        UserError: a value does not fit; the message names the flag.
    """
    if values is None:
        kind, values = type(kind), {f.name: getattr(kind, f.name) for f in dataclasses.fields(kind)}
    try:
        check_values(kind, values, lambda name: f"--{name.replace('_', '-')}")
    except ValueError as error:
        raise UserError(str(error)) from error


def check_config(kind: Any, values: Any) -> None:
    """Refuse a part of config.json that does not fit the annotations of a dataclass.

    Args:
        kind: the dataclass.
        values: by the name of the field.

    Raises:
        UserError: (exit code 3) it is no table of names and values, or a value does not fit.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"config.json does not fit: expected a table of {kind.__name__}, got {values!r:.40}", exit_code=3)
    try:
        check_values(kind, values)
    except ValueError as error:
        raise UserError(f"config.json does not fit: {error}", exit_code=3) from error
