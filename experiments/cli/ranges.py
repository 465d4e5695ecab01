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
