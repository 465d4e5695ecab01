"""When something is due that is to happen a given number of times in a run: evenly, or half of it on a logarithmic axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EvenMarks:
    """`count` marks evenly apart, the last at `total`."""

    total: int
    count: int

    def passed(self, before: float, now: float) -> bool:
        """Is there a mark in (before, now]?"""
        return int(before * self.count / self.total) < int(now * self.count / self.total)


class Marks:
    """About `count` marks from `first` to `total`: half of them evenly apart, half of them evenly on a logarithmic axis.

    They depend on nothing else, so that a resumed run meets the same ones.
    """

    def __init__(self, total: int, first: int, count: int) -> None:
        half = max(1, count // 2)
        even = np.linspace(0, total, half + 1)[1:]
        logarithmic = np.geomspace(min(first, total), total, half)
        self._marks = np.unique(np.ceil(np.concatenate([even, logarithmic])))

    def passed(self, before: int, now: int) -> bool:
        """Is there a mark in (before, now]?"""
        low, high = np.searchsorted(self._marks, [before, now], side="right")
        return bool(low < high)
