"""Values held to their annotations: numbers, choices, lists, what may be missing."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from envs.ranges import Count, Finite, NonNegative, Positive, Range, Weight, Widths, check_fields, check_values, expected


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "said"),
    [
        (
            Count,
            (1, 10**9),
            (0, -1, 10**30, 1.0, math.nan, math.inf, True, "1", None),
            "at least|at most|an integer",
        ),
        (Count | None, (1, None), (0, math.nan), "at least 1|an integer from"),
        (Positive, (1e-300, 1, 2.5), (0, -1.0, math.nan, math.inf, 10**400, "1", False), "a finite number above 0"),
        (NonNegative, (0, 0.0), (-1e-300, -math.inf, math.nan), "a finite number of at least 0"),
        (Weight, (1, 0.5), (0, 1.1, math.nan, math.inf), r"a number in \(0, 1\]"),
        (Annotated[float, Range(0, 1, below=True)], (0.0, 0.99), (1.0, math.nan), r"a number in \[0, 1\)"),
        (Annotated[float, Range(high=0)], (0, -2500.0), (1e-9, -math.inf), "a finite number of at most 0"),
        (Finite, (-1.0, 0, 1e308), (math.nan, math.inf, -math.inf), "a finite number"),
        (float, (-1.0,), (math.nan, math.inf, "x"), "a finite number"),
        (int, (-(2**62), 2**62), (2**62 + 1, 1.5, math.nan), "at most|an integer"),
        (
            Widths,
            ((), (4, 8), [3]),
            ((0,), (4, math.nan), (10**7,), 3, "x"),
            "widths of at least 1|a list",
        ),
        (bool, (True, False), (0, "True", None), "true or false"),
        (str, ("x",), (1, None), "text"),
        (Literal["fifo", "none"], ("none",), ("lifo", None, 0), "fifo or none"),
        (Finite | Literal["auto"], (1.0, "auto"), (math.nan, "x"), "a finite number or auto"),
        (Any, (object(), math.nan), (), ""),
    ],
)
def test_what_fits_an_annotation(hint: Any, right: tuple[Any, ...], wrong: tuple[Any, ...], said: str) -> None:
    assert [expected(hint, value) for value in right] == [""] * len(right)
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^x is .*, expected ({said})"):
            _check(hint, value)


def _check(hint: Any, value: Any) -> None:
    def function(x: Any) -> None: ...

    function.__annotations__["x"] = hint
    check_values(function, {"x": value})


@dataclass(frozen=True)
class Checked:
    step: Positive
    limit: float = math.inf

    def __post_init__(self) -> None:
        check_fields(self)


def test_a_dataclass_holds_its_own_fields_to_their_ranges_and_its_defaults_are_always_in_range() -> None:
    Checked(1.0)
    with pytest.raises(ValueError, match=r"^step is nan, expected a finite number above 0$"):
        Checked(math.nan)
    with pytest.raises(ValueError, match=r"^limit is nan, expected a finite number$"):
        Checked(1.0, math.nan)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(ValueError, match=r"^x is a number of more than 40 digits, expected at most 1,000,000,000$"):
        _check(Count, 10**5000)
    with pytest.raises(ValueError, match=r"^x is 'a{76}\.\.\., expected an integer"):
        _check(Count, "a" * 1000)
