"""Ranges of flags: one sentence, with the flag as it is typed."""

from dataclasses import dataclass

import pytest

from envs.ranges import Batch, Count, Seed, Widths
from experiments.cli.errors import UserError
from experiments.cli.ranges import check_flags
from experiments.gfn.active import check
from gflownet.active.rounds import Settings


@dataclass(frozen=True)
class Flags:
    seeds: Count = 1
    batch_size: Batch = 7
    seed: Seed = 0
    hidden: Widths = ()


def test_a_number_that_is_too_small_is_named_as_a_flag() -> None:
    check_flags(Flags())
    with pytest.raises(UserError, match=r"^--batch-size is 0, expected at least 1$"):
        check_flags(Flags(batch_size=0))


@pytest.mark.parametrize("seed", [-1, 2**62])
def test_a_seed_that_does_not_fit_is_refused(seed: int) -> None:
    check_flags(Flags(seed=2**62 - 1))
    with pytest.raises(UserError, match=rf"^--seed is {seed}, expected a number from 0 to 2\^62$"):
        check_flags(Flags(seed=seed))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rounds": 0}, "--rounds is 0, expected at least 1"),
        ({"top_k": 1}, "--top-k is 1, expected at least 2"),
        ({"initial": 4, "top_k": 5}, "--initial is 4, expected at least --top-k, 5"),
        ({"proxy": "net"}, "--proxy is 'net', expected gp or oracle"),
        ({"floor": 0.0}, "--floor is 0.0, expected a finite number above 0"),
    ],
)
def test_settings_of_active_learning_are_checked(settings: dict[str, object], sentence: str) -> None:
    check(Settings())
    with pytest.raises(UserError) as fault:
        check(Settings(**settings))  # type: ignore[arg-type]
    assert sentence in str(fault.value)
