"""Ranges that flags share, each refused with one sentence that names the flag."""

from __future__ import annotations

from experiments.cli.errors import UserError


def at_least(least: int, **values: int) -> None:
    """Refuse numbers that are too small.

    Args:
        least: the smallest number allowed.
        values: flags, with underscores, and what they are set to.

    Raises:
        UserError: a value is smaller.
    """
    for name, value in values.items():
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")


def check_seed(seed: int) -> None:
    """Refuse a seed that does not fit.

    Args:
        seed: the value of --seed.

    Raises:
        UserError: it is negative, or 2^62 and above.
    """
    if not 0 <= seed < 2**62:
        raise UserError(f"--seed is {seed}, expected a number from 0 to 2^62")
