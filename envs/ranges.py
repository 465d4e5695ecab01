"""Ranges of numbers, declared beside the field or parameter they belong to, and the check of a value against its annotation.

    @dataclass(frozen=True)
    class Settings:
        seeds: Count = 10
        discount: Annotated[float, Range(0, 1, above=True)] = 0.99

        def __post_init__(self) -> None:
            check_fields(self)          # ValueError: seeds is 0, expected at least 1

NaN and infinities fit no number; a whole number without a range of its own fits below 2^62.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

LARGEST = 2**62
LARGEST_FLOAT = sys.float_info.max


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
        low: the least number, or its bound.
        high: the greatest number.
        above: `low` itself is outside.
        below: `high` itself is outside.
        text: what is expected, in place of the bounds.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    text: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is inside; False for NaN and infinities."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        low = self.low < value if self.above else self.low <= value
        return low and (value < self.high if self.below else value <= self.high)

    def expected(self, value: Any, whole: bool) -> str:
        """What was expected in place of `value`. whole: integers only."""
        if self.text:
            return self.text
        bounded = self.low > -math.inf, self.high < math.inf
        if whole and isinstance(value, int):
            return f"at least {self.low:,}" if value < self.low else f"at most {self.high:,}"
        if whole:
            return f"an integer from {self.low:,} to {self.high:,}" if all(bounded) else "an integer"
        if all(bounded):
            return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        if bounded[0]:
            return f"a finite number {'above' if self.above else 'of at least'} {self.low:g}"
        return f"a finite number of at most {self.high:g}" if bounded[1] else "a finite number"


Seed = Annotated[int, Range(0, LARGEST - 1, text="a number from 0 to 2^62")]
Seeds = Annotated[int, Range(1, 1_000_000)]
Calls = Annotated[int, Range(0, 10**15)]
Steps = Annotated[int, Range(1, 10**15)]  # counted in float64 too
Count = Annotated[int, Range(1, 1_000_000_000)]
Batch = Annotated[int, Range(1, 10_000_000)]
Rows = Annotated[int, Range(1, 1_000_000)]
Natural = Annotated[int, Range(0, 1_000_000_000)]
Widths = tuple[Annotated[int, Range(1, 1_000_000, text="widths of at least 1 and at most 1,000,000")], ...]
Workers = Annotated[int, Range(0, 1_024)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1, above=True)]


def check_values(kind: Any, values: Mapping[str, Any], name: Callable[[str], str] = str) -> None:
    """Hold values to the annotations of a dataclass or function: types, choices and ranges.

    Args:
        kind: the dataclass or the function.
        values: by the name of the field or parameter; those that `kind` does not have are passed over.
        name: how a field is called in the message.

    Raises:
        ValueError: a value does not fit.
    """
    hints, defaults = _hints(kind), _defaults(kind)
    for field, value in values.items():
        default = field in defaults and type(value) is type(defaults[field]) and value == defaults[field]
        if not default and (wanted := expected(hints.get(field, Any), value)):
            raise ValueError(f"{name(field)} is {_short(value)}, expected {wanted}")


def check_fields(instance: Any) -> None:
    """Hold the fields of a dataclass to their annotations, for its `__post_init__`.

    Raises:
        ValueError: a value does not fit.
    """
    check_values(type(instance), {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)})


def expected(hint: Any, value: Any, range_: Range | None = None) -> str:
    """What an annotation asks for in place of `value`; "" where it fits, and for annotations of other kinds.

    Args:
        hint: the annotation: int, float, bool, str, Literal, tuple[X, ...], unions of them, and Annotated with a `Range`.
        value: what was given.
        range_: a range that an outer annotation has declared.
    """
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, *more = typing.get_args(hint)
        return expected(inner, value, next((x for x in more if isinstance(x, Range)), range_))
    if origin in (typing.Union, types.UnionType):
        wanted = [expected(member, value, range_) for member in typing.get_args(hint)]
        return "" if "" in wanted else " or ".join(x for x in wanted if x != "none")
    if hint is None or hint is type(None):
        return "" if value is None else "none"
    if origin is Literal:
        choices = typing.get_args(hint)
        known = any(type(c) is type(value) and c == value for c in choices)
        return "" if known else (" or " if len(choices) == 2 else ", ").join(map(str, choices))
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return "a list"
        return next((x for x in (expected(typing.get_args(hint)[0], item) for item in value) if x), "")
    if hint is bool:
        return "" if isinstance(value, bool) else "true or false"
    if hint is str:
        return "" if isinstance(value, str) else "text"
    if hint is int or hint is float:
        return _number(hint, value, range_ or (Range(high=LARGEST) if hint is int else Range()))
    return ""


def _number(hint: type, value: Any, range_: Range | None) -> str:
    whole = hint is int
    range_ = range_ or (Range(-LARGEST, LARGEST) if whole else Range())
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if number and range_.holds(value) and abs(value) <= LARGEST_FLOAT:
        return ""
    return range_.expected(value if number else None, whole)


@lru_cache(256)
def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):  # of a user's class: names that only a type checker knows
        return {}


def _defaults(kind: Any) -> dict[str, Any]:
    """Defaults are in range, whatever they are."""
    return {f.name: f.default for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = f"{value!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."
