"""A function of a user's file as the reward, in the process `child`: from a list of SMILES to a list of answers."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from envs.raised import raised
from experiments.cli.load import object_in
from experiments.oracle.protocol import Answer, CallFailed


def loaded(name: str, source: bytes) -> Callable[[list[str]], list[Answer]]:
    """The reward that `name`, file.py:function, is in this source text. UserError where it cannot be loaded."""
    function = object_in(name, source)
    if not callable(function):
        raise CallFailed(f"{name} is {reprlib.repr(function)}, expected a function of a list of SMILES")
    return lambda smiles: evaluated(function, smiles)


def evaluated(function: Callable[[list[str]], Any], smiles: list[str]) -> list[Answer]:
    """What a function says of molecules, one answer for each.

    Raises:
        CallFailed: it raised, or did not return as many values.
    """
    n = len(smiles)
    wanted = f"expected a list of {n} number{'' if n == 1 else 's'}"
    try:
        result = function(list(smiles))
        if isinstance(result, str | bytes | dict) or not isinstance(result, Iterable):
            raise CallFailed(f"the function returned {shown(result)}, {wanted}")
        values = list(itertools.islice(iter(result), n + 1))
    except CallFailed:
        raise
    except BaseException as error:
        raise CallFailed(f"the function {raised(error)}") from error
    if len(values) != n:
        try:
            count = len(result)  # type: ignore[arg-type]
        except Exception:
            count = len(values)
        raise CallFailed(f"the function returned {count:,} value{'' if count == 1 else 's'}, {wanted}")
    return [number(value) for value in values]


def number(value: Any) -> Answer:
    """A finite number, or why it is none."""
    try:
        if value is None or isinstance(value, str | bytes):
            raise TypeError
        found = float(value)
    except Exception:
        return "invalid", f"the function gave {shown(value)}, expected a finite number"
    return found if math.isfinite(found) else ("invalid", f"the function gave {found}, expected a finite number")


def shown(value: Any) -> str:
    try:
        return f"{reprlib.repr(value):.100}"
    except Exception:
        return f"a {type(value).__name__}"
